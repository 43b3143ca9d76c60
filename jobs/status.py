"""``promptmill status``: how far a run is, how fast, and what went wrong. Reads only; needs neither torch nor Ray.

Counts come from the commit markers, reasons from the metadata table, speed and mishaps from the event log.
"""

import json
import os
import socket
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from heapq import nlargest
from statistics import median

from jobs.history import Done, History, Mishap, Session, WorkerSeen, read_history
from jobs.judged import read_judged
from jobs.query import query
from jobs.run_dir import RunDir
from jobs.status_view import render
from schemas import layout
from schemas.errors import QueryError
from schemas.records import Marker, PlanIndex

__all__ = ["Reason", "Status", "WorkerStatus", "render", "status", "to_json"]

RECENT_SHARDS = 20
SLOWEST = 5  # shards to name
SLOW = 1.5  # times the median
SILENT_SECONDS = 600  # without a sign of life, of a driver whose process cannot be asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """How many draws share a verdict; ``reason`` is null for accepted ones."""

    status: str
    reason: str | None
    draws: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """One process of the latest start. Its rate is from its start to its last committed shard; None before that."""

    name: str
    shards: int
    draws: int
    images_per_second: float | None
    lost: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowShard:
    """``seconds`` of work of one shard, its waits for the device left out; ``times_median`` compares it with the usual shard."""

    shard_id: int
    worker: str
    seconds: float
    times_median: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A run at one moment.

    ``state`` is running, stopped (the same command goes on) or finished. Rates count from the first ready worker
    of each start to its last committed shard; the recent rate is over the last few shards. ``eta_seconds`` is
    None unless it runs. ``stage_seconds`` add up over workers and threads. ``mishaps`` counts by kind what went wrong and
    was dealt with, over all starts; ``latest_mishaps`` and ``slowest`` are a few of each. ``judged`` tells that ``promptmill filter``
    gave the run other rules.
    """

    root: str
    fingerprint: str
    state: str
    shards_done: int
    shards_planned: int
    draws_done: int
    draws_planned: int
    accepted: int
    rejected: int
    failed: int
    num_bytes: int
    reasons: tuple[Reason, ...]
    started_at: str | None
    last_event_at: str | None
    starts: int
    images_per_second: float | None
    recent_images_per_second: float | None
    eta_seconds: float | None
    stage_seconds: Mapping[str, float]
    workers: tuple[WorkerStatus, ...]
    slowest: tuple[SlowShard, ...]
    mishaps: Mapping[str, int]
    latest_mishaps: tuple[Mishap, ...]
    note: str | None = None
    judged: bool = False


def status(run_dir: RunDir, *, now: datetime | None = None) -> Status:
    """The state of a run, now. Raises RunFolderError if it was never planned."""
    index = run_dir.plan
    markers = [marker for marker in run_dir.markers() if _planned(marker, index)]
    history = _history(run_dir)
    latest = history.sessions[-1] if history.sessions else None
    counts = {name: sum(getattr(marker, name) for marker in markers) for name in ("draws", "accepted", "rejected", "failed", "num_bytes")}
    state = _state(len(markers) == index.num_shards, latest, now or datetime.now(UTC))
    recent = _recent_rate(latest)
    left = index.num_draws - counts["draws"]
    reasons, note = _reasons(run_dir) if markers else ((), None)
    judged = read_judged(run_dir.store) is not None
    if judged and note is None:
        counts |= {name: sum(reason.draws for reason in reasons if reason.status == name) for name in ("accepted", "rejected", "failed")}
    return Status(
        root=run_dir.store.root,
        fingerprint=run_dir.job.fingerprint,
        state=state,
        shards_done=len(markers),
        shards_planned=index.num_shards,
        draws_done=counts.pop("draws"),
        draws_planned=index.num_draws,
        **counts,
        reasons=reasons,
        started_at=history.sessions[0].started_at.isoformat(timespec="seconds") if latest else None,
        last_event_at=latest.last_at.isoformat(timespec="seconds") if latest else None,
        starts=len(history.sessions),
        images_per_second=_rate(history),
        recent_images_per_second=recent,
        eta_seconds=round(left / recent, 1) if state == "running" and recent else None,
        stage_seconds=_stage_seconds(markers),
        workers=_workers(latest),
        slowest=_slowest(markers),
        mishaps=dict(history.mishaps),
        latest_mishaps=tuple(history.latest),
        note=note,
        judged=judged,
    )


def to_json(found: Status) -> str:
    """All fields under their own names."""
    return json.dumps(asdict(found), ensure_ascii=False, indent=1)


def _planned(marker: Marker, index: PlanIndex) -> bool:
    return marker.shard_id < index.num_shards and index.shards[marker.shard_id] == marker.draws_sha256


def _history(run_dir: RunDir) -> History:
    return read_history(run_dir.store.read_log(layout.EVENTS))


def _state(complete: bool, latest: Session | None, now: datetime) -> str:
    if complete:
        return "finished"
    if latest is None or latest.ended:
        return "stopped"
    if latest.pid is not None and latest.host == socket.gethostname():
        return "running" if _alive(latest.pid) else "stopped"
    return "running" if (now - latest.last_at).total_seconds() < SILENT_SECONDS else "stopped"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's process
        return True
    return True


def _reasons(run_dir: RunDir) -> tuple[tuple[Reason, ...], str | None]:
    sql = "select status, reason, count(*) as draws from metadata group by all order by status, draws desc, reason"
    try:
        return tuple(Reason(**row) for row in query([run_dir.store.root], sql).to_pylist()), None
    except QueryError as error:
        return (), str(error)


def _rate(history: History) -> float | None:
    """Over all starts, pauses between them left out."""
    seconds = sum(session.working_seconds for session in history.sessions)
    draws = sum(done.draws for session in history.sessions for done in session.done)
    return round(draws / seconds, 3) if seconds else None


def _recent_rate(latest: Session | None) -> float | None:
    if latest is None or not latest.done:
        return None
    many = max(RECENT_SHARDS, 4 * len(latest.workers))
    recent = latest.done[-many:]
    since = latest.done[-many - 1].at if len(latest.done) > many else latest.ready_at
    seconds = (recent[-1].at - since).total_seconds()
    return round(sum(done.draws for done in recent) / seconds, 3) if seconds > 0 else None


def _stage_seconds(markers: list[Marker]) -> dict[str, float]:
    total: Counter[str] = Counter()
    for marker in markers:
        total.update(marker.seconds)
    return {stage: round(seconds, 2) for stage, seconds in total.items()}


def _slowest(markers: list[Marker]) -> tuple[SlowShard, ...]:
    """Of the shards that took much longer than the median one."""
    seconds = {marker.shard_id: sum(value for stage, value in marker.seconds.items() if stage != "wait") for marker in markers}
    usual = median(seconds.values()) if seconds else 0.0
    slow = [marker for marker in markers if seconds[marker.shard_id] >= SLOW * usual > 0]
    return tuple(
        SlowShard(
            shard_id=marker.shard_id,
            worker=marker.worker,
            seconds=round(seconds[marker.shard_id], 2),
            times_median=round(seconds[marker.shard_id] / usual, 2),
        )
        for marker in nlargest(SLOWEST, slow, key=lambda marker: seconds[marker.shard_id])
    )


def _workers(latest: Session | None) -> tuple[WorkerStatus, ...]:
    if latest is None:
        return ()
    done: dict[str, list[Done]] = {name: [] for name in latest.workers}
    for one in latest.done:
        done.setdefault(one.worker, []).append(one)
    return tuple(_worker(name, shards, latest.workers.get(name)) for name, shards in done.items())


def _worker(name: str, done: list[Done], seen: WorkerSeen | None) -> WorkerStatus:
    draws = sum(one.draws for one in done)
    seconds = (done[-1].at - seen.ready_at).total_seconds() if done and seen else 0.0
    return WorkerStatus(
        name=name,
        shards=len(done),
        draws=draws,
        images_per_second=round(draws / seconds, 3) if seconds > 0 else None,
        lost=seen is not None and seen.lost,
    )
