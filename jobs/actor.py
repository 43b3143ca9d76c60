"""A ``ShardWorker`` as an actor of ``jobs.ray_pool``. Knows nothing of Ray."""

import socket
import threading

from pipeline.lending import Made
from pipeline.worker import SHARDS_AT_ONCE, ShardWorker, WorkOrder
from schemas.errors import ModelError
from schemas.records import ShardResult


class Actor:
    """Loads at the first call, and so again after a restart. Its methods run in threads of their own."""

    def __init__(self, order: WorkOrder) -> None:
        self._order = order
        self._worker: ShardWorker | None = None
        self._lock = threading.Lock()
        self._stopped = False

    def load(self) -> tuple[str, dict[str, float]]:
        """Load the models; the worker's name and the seconds by part. Raises ModelError, naming the node, if it cannot."""
        worker = self._get()
        return worker.stages.worker, worker.loading

    def run(self, shard_id: int, is_last: bool, carefully: bool) -> ShardResult:
        """Make and commit one shard."""
        return self._get().run(shard_id, keep_failures=is_last, carefully=carefully)

    def stop(self) -> None:
        """Finish the current batch and put the rest aside."""
        self._stopped = True
        if self._worker:
            self._worker.stop()

    def lend(self, loan: int, idle: int) -> tuple[int, list[str]] | None:
        """A part of a shard, as sample ids, which one of so many idle actors is to make; None if all is begun."""
        return self._worker.lend(loan, idle) if self._worker else None

    def help_with(self, shard_id: int, sample_ids: list[str]) -> tuple[int, Made]:
        """Make a part of another actor's shard; how many draws, and these."""
        made = self._get().help_with(shard_id, sample_ids)
        return len(made.outcomes), made

    def take_back(self, loan: int, made: Made | None) -> None:
        """What was made of a loan, None if its helper was lost."""
        if self._worker:
            self._worker.take_back(loan, made)

    def pulse(self) -> tuple[int, float, int]:
        """Draws sampled so far, the seconds that the current batch has taken, and how many shards to have in flight."""
        worker = self._worker
        return (worker.sampled, worker.stages.device.busy_seconds, worker.capacity) if worker else (0, 0.0, SHARDS_AT_ONCE)

    def _get(self) -> ShardWorker:
        with self._lock:
            if self._worker is None:
                try:
                    self._worker = ShardWorker(self._order)
                except ModelError as error:
                    raise ModelError(f"{socket.gethostname()}: {error}") from None
                if self._stopped:
                    self._worker.stop()
            return self._worker
