"""What the commit markers of a run add up to, in one pass; memory grows by eight bytes a shard."""

from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from heapq import heappush, heappushpop
from statistics import median

from jobs.run_dir import RunDir
from schemas.records import Marker, PlanIndex

SLOWEST = 5  # shards to name
SLOW = 1.5  # times the median


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """How many draws share a verdict; ``reason`` is null for accepted ones."""

    status: str
    reason: str | None
    draws: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowShard:
    """``seconds`` of work of one shard, its waits for the device left out; ``times_median`` compares it with the usual shard."""

    shard_id: int
    worker: str
    seconds: float
    times_median: float


@dataclass(slots=True)
class Committed:
    """Sums over shards. ``counts`` are draws, accepted, rejected, failed, num_bytes; ``stage_seconds`` add up over workers and threads."""

    shards: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    stage_seconds: Counter[str] = field(default_factory=Counter)
    _reasons: Counter[str] = field(default_factory=Counter)
    _seconds: array = field(default_factory=lambda: array("d"))
    _longest: list[tuple[float, int, str]] = field(default_factory=list)

    def add(self, marker: Marker) -> None:
        """Count one shard."""
        self.shards += 1
        self.counts.update({name: getattr(marker, name) for name in ("draws", "accepted", "rejected", "failed", "num_bytes")})
        self.stage_seconds.update(marker.seconds)
        self._reasons.update(marker.reasons)
        seconds = sum(value for stage, value in marker.seconds.items() if stage != "wait")
        self._seconds.append(seconds)
        (heappushpop if len(self._longest) == SLOWEST else heappush)(self._longest, (seconds, -marker.shard_id, marker.worker))

    @property
    def reasons(self) -> tuple[Reason, ...] | None:
        """Draws by status and reason; None if a marker of an earlier version does not tell."""
        if self._reasons.total() != self.counts["rejected"] + self.counts["failed"]:
            return None
        accepted = [Reason(status="accepted", reason=None, draws=self.counts["accepted"])] if self.counts["accepted"] else []
        others = [_reason(words, draws) for words, draws in self._reasons.items()]
        return (*accepted, *sorted(others, key=lambda one: (one.status, -one.draws, one.reason)))

    @property
    def slowest(self) -> tuple[SlowShard, ...]:
        """A few of the shards that took much longer than the median one."""
        usual = median(self._seconds) if self._seconds else 0.0
        slow = [one for one in sorted(self._longest, reverse=True) if one[0] >= SLOW * usual > 0]
        return tuple(
            SlowShard(shard_id=-number, worker=worker, seconds=round(seconds, 2), times_median=round(seconds / usual, 2))
            for seconds, number, worker in slow
        )

    def rounded_stage_seconds(self) -> Mapping[str, float]:
        """In whole hundredths."""
        return {stage: round(seconds, 2) for stage, seconds in self.stage_seconds.items()}


def read_committed(run_dir: RunDir, index: PlanIndex) -> Committed:
    """Over all shards that belong to the plan."""
    found = Committed()
    for _, marker in run_dir.each_marker():
        if marker and index.holds(marker):
            found.add(marker)
    return found


def _reason(words: str, draws: int) -> Reason:
    status, _, reason = words.partition(" ")
    return Reason(status=status, reason=reason, draws=draws)
