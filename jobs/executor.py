"""What the executors share: how a run is controlled, and which shard is tried how often.

An executor is a callable ``(order, shard_ids, control) -> Iterator[ShardResult]``: ``jobs.local.run_local``
and ``jobs.ray_pool.run_on_ray``. Both go through one test suite.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from pipeline.worker import WorkOrder
from schemas.config import ExecutorConfig
from schemas.errors import ShardError, UserError
from schemas.records import ShardResult

POLL_SECONDS = 0.5
HOPELESS_AFTER = 3  # shards that failed entirely, before any succeeded: the model is broken, not the prompts


class OnEvent(Protocol):
    """Receives what happens: the event's name and its facts (JSON values)."""

    def __call__(self, event: str, **facts: object) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Control:
    """The driver's hand on a run. ``stop`` set means: finish the current batches, put the rest aside."""

    config: ExecutorConfig
    cpu_threads: int
    on_event: OnEvent
    on_sampled: Callable[[int], None] = lambda draws: None
    stop: threading.Event = field(default_factory=threading.Event)
    learned: Callable[[int], bool] = lambda shard_id: False  # since the last time a worker died over this shard

    def on_ready(self, worker: str, loading: Mapping[str, float], **facts: object) -> None:
        """A worker has loaded its models, which took so many seconds each."""
        each = {part: round(seconds, 2) for part, seconds in loading.items()}
        self.on_event("worker_ready", **facts, worker=worker, seconds=round(sum(loading.values()), 2), loading=each)


class Executor(Protocol):
    """Makes shards, in any order, and reports each as it is committed or put aside."""

    def __call__(self, order: WorkOrder, shard_ids: Sequence[int], control: Control) -> Iterator[ShardResult]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One try at a shard; ``attempt`` counts from 1. The last try commits a shard even if all of it failed.

    ``carefully`` is set once a worker has died over the shard.
    """

    shard_id: int
    attempt: int
    is_last: bool
    carefully: bool = False


class TaskQueue:
    """Shards that wait. The executor reports the fate of each try; a shard that fails goes to the end."""

    def __init__(self, shard_ids: Iterable[int], control: Control) -> None:
        self._waiting = deque(shard_ids)
        self._attempts: dict[int, int] = {}
        self._deadly: set[int] = set()
        self._control = control
        self._hopeless = 0
        self._any_success = False

    def __bool__(self) -> bool:
        return bool(self._waiting)

    @property
    def next_is_deadly(self) -> bool:
        """Whether a worker has died over the shard that is next."""
        return bool(self._waiting) and self._waiting[0] in self._deadly

    def take(self) -> Task:
        """The next try."""
        shard_id = self._waiting.popleft()
        attempt = self._attempts.get(shard_id, 0) + 1
        is_last = attempt >= self._control.config.max_attempts
        return Task(shard_id=shard_id, attempt=attempt, is_last=is_last, carefully=shard_id in self._deadly)

    def succeeded(self) -> None:
        """A try was committed."""
        self._any_success = True

    def give_back(self, task: Task) -> None:
        """The worker did not begin; the try does not count."""
        self._waiting.appendleft(task.shard_id)

    def failed(self, task: Task, error: ShardError) -> None:
        """Every draw of the shard failed. Raises UserError if nothing has worked so far."""
        self._hopeless += 1
        if not self._any_success and self._hopeless >= HOPELESS_AFTER:
            raise UserError(f"every draw fails: {error}; nothing of it was committed; mend the cause and run the same command again")
        self._again(task, str(error))

    def lost(self, task: Task, why: str) -> None:
        """The worker died. The shard is tried again as long as each death tells more about the draw that is to blame;
        else after the last try it is left undone, for a later run.
        """
        self._deadly.add(task.shard_id)
        if self._control.learned(task.shard_id):
            self._again(replace(task, attempt=task.attempt - 1), why)
        elif task.is_last:
            self._control.on_event("shard_abandoned", shard_id=task.shard_id, attempts=task.attempt, error=why)
        else:
            self._again(task, why)

    def _again(self, task: Task, why: str) -> None:
        self._attempts[task.shard_id] = task.attempt
        self._waiting.append(task.shard_id)
        self._control.on_event("shard_retry", shard_id=task.shard_id, attempt=task.attempt, error=why)
