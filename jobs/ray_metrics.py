"""What a run on Ray has done, as metrics of Ray: each node's Prometheus endpoint carries them (https://docs.ray.io, "Metrics").

The driver counts, so nothing is counted twice when an actor dies. Names get the prefix ``ray_``, counters the suffix ``_total``.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from ray.util.metrics import Counter, Gauge

from jobs.executor import Control
from jobs.history import MISHAPS
from schemas.records import ShardResult


class Metrics:
    """Counters of one run, tagged with its folder."""

    def __init__(self, run: str) -> None:
        tags = {"run": run}
        self._draws = Counter("promptmill_draws", "draws of committed shards", ("run", "verdict"))
        self._seconds = Counter("promptmill_stage_seconds", "seconds of work of committed shards", ("run", "stage"))
        self._mishaps = Counter("promptmill_mishaps", "what went wrong and was dealt with", ("run", "kind"))
        self._workers = Gauge("promptmill_workers", "actors that have loaded the models", ("run",))
        self._num_workers = 0
        for metric in (self._draws, self._seconds, self._mishaps, self._workers):
            metric.set_default_tags(tags)

    def listening(self, control: Control) -> Control:
        """The control, whose events are counted."""

        def on_event(event: str, **facts: object) -> None:
            if event in MISHAPS:
                self._mishaps.inc(1, {"kind": event})
            self._num_workers += {"worker_ready": 1, "worker_lost": -1}.get(event, 0)
            self._workers.set(self._num_workers)
            control.on_event(event, **facts)

        return replace(control, on_event=on_event)

    def counted(self, results: Iterable[ShardResult]) -> Iterator[ShardResult]:
        """The results, counted as they pass."""
        for result in results:
            if not result.drained:
                self._count(result)
            yield result

    def _count(self, result: ShardResult) -> None:
        for verdict in ("accepted", "rejected", "failed"):
            if draws := getattr(result, verdict):
                self._draws.inc(draws, {"verdict": verdict})
        for stage, seconds in result.seconds.items():
            if seconds > 0:
                self._seconds.inc(seconds, {"stage": stage})
