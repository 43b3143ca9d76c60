"""Executor on Ray: one actor per GPU (or per share of the CPU cores), each a ``ShardWorker``.

Only shard numbers and counts travel; images go from the actor to storage. Ray schedules and restarts
actors, the driver alone decides about retries (``max_task_retries=0``).
"""

import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from jobs.executor import POLL_SECONDS, Control, Task, TaskQueue
from pipeline.worker import SHARDS_AT_ONCE, ShardWorker, WorkOrder
from schemas.errors import ConfigError, ShardError, UserError
from schemas.records import ShardResult

log = logging.getLogger(__name__)

PASSED_ON = (  # settings of the driver that its workers must share; never credentials, which Ray would write to its logs
    "HF_HUB_OFFLINE",
    "HF_HOME",
    "HF_HUB_CACHE",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
)
RESTART_SECONDS = 0.2  # between two looks at an actor that Ray restarts
LOOK_SECONDS = 5.0  # between two looks for nodes that have joined
START_SECONDS = 600  # for an actor to load its models, before the wait is given up


class Actor:
    """A ``ShardWorker`` behind Ray. Loads at the first call, and so again after a restart."""

    def __init__(self, order: WorkOrder) -> None:
        self._order = order
        self._worker: ShardWorker | None = None
        self._lock = threading.Lock()
        self._stopped = False

    def load(self) -> tuple[str, float]:
        """Load the models; the worker's name and the seconds it took."""
        worker = self._get()
        return worker.stages.worker, worker.load_seconds

    def run(self, shard_id: int, is_last: bool, carefully: bool) -> ShardResult:
        """Make and commit one shard."""
        return self._get().run(shard_id, keep_failures=is_last, carefully=carefully)

    def stop(self) -> None:
        """Finish the current batch and put the rest aside."""
        self._stopped = True
        if self._worker:
            self._worker.stop()

    def pulse(self) -> tuple[int, float]:
        """Draws sampled so far, and the seconds that the current batch has taken."""
        return (self._worker.sampled, self._worker.stages.device.busy_seconds) if self._worker else (0, 0.0)

    def _get(self) -> ShardWorker:
        with self._lock:
            if self._worker is None:
                self._worker = ShardWorker(self._order)
                if self._stopped:
                    self._worker.stop()
            return self._worker


def run_on_ray(order: WorkOrder, shard_ids: Sequence[int], control: Control) -> Iterator[ShardResult]:
    """Make the shards on actors of the named cluster, or of one started on this machine and ended with the run."""
    with tempfile.TemporaryDirectory(prefix="promptmill-") as empty:
        _connect(control.config.address, empty)
        try:
            yield from _Pool(order, shard_ids, control).results()
        finally:
            ray.shutdown()


class _Pool:
    """The driver's loop over actors, each with up to ``SHARDS_AT_ONCE`` shards in flight."""

    def __init__(self, order: WorkOrder, shard_ids: Sequence[int], control: Control) -> None:
        self._control = control
        self._queue = TaskQueue(shard_ids, control)
        self._num_shards = len(shard_ids)
        count, options = _layout(control, self._num_shards)
        remote: Any = ray.remote(Actor).options(max_restarts=-1, max_task_retries=0, max_concurrency=SHARDS_AT_ONCE + 2, **options)
        self._new_actor: Callable[[], Any] = lambda: remote.remote(order)
        self._actors = [self._new_actor() for _ in range(count)]
        self._lost_loading = 0
        self._loading: dict[Any, int] = {actor.load.remote(): number for number, actor in enumerate(self._actors)}
        self._running: dict[Any, tuple[int, Task]] = {}
        self._ready: set[int] = set()
        self._polls: dict[Any, int] = {}
        self._asked: dict[int, float] = {}
        self._sampled: dict[int, int] = {}
        self._stopping = False
        self._deadline = time.monotonic() + START_SECONDS
        self._look_at = time.monotonic() + LOOK_SECONDS

    def results(self) -> Iterator[ShardResult]:
        """Results as they come; ends when all is done, or all that was running is put aside."""
        while self._running or (self._queue and not self._control.stop.is_set()):
            self._hand_out()
            self._grow()
            if self._control.stop.is_set() and not self._stopping:
                self._stopping = True
                for actor in self._actors:
                    actor.stop.remote()
            waiting = [*self._running, *self._loading]
            done, _ = ray.wait(waiting, num_returns=1, timeout=POLL_SECONDS)
            self._poll_progress()
            for ref in done:
                if ref in self._loading:
                    self._loaded(ref)
                elif (result := self._finished(ref)) is not None:
                    yield result
            if not self._ready and time.monotonic() > self._deadline:
                raise UserError(f"no worker was ready after {START_SECONDS} s; see 'ray status' for what the cluster lacks")

    def _hand_out(self) -> None:
        """Give each ready actor its next shards; the least busy first."""
        busy = {number: sum(owner == number for owner, _ in self._running.values()) for number in self._ready}
        while self._queue and busy and not self._control.stop.is_set():
            number = min(busy, key=lambda n: (busy[n], n))
            if busy[number] >= SHARDS_AT_ONCE:
                return
            task = self._queue.take()
            self._running[self._actors[number].run.remote(task.shard_id, task.is_last, task.carefully)] = (number, task)
            busy[number] += 1

    def _grow(self) -> None:
        """Use nodes that have joined. Actors of nodes that have left wait for room, the others take their shards."""
        if self._control.stop.is_set() or not self._queue or time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + LOOK_SECONDS
        for number in range(len(self._actors), _count(self._control, self._num_shards)):
            self._actors.append(self._new_actor())
            self._loading[self._actors[number].load.remote()] = number

    def _loaded(self, ref: Any) -> None:
        number = self._loading.pop(ref)
        try:
            worker, seconds = ray.get(ref)
        except RayActorError as error:
            if not isinstance(error, ActorUnavailableError):  # it will not come back by itself
                self._lost_loading += 1
                self._actors[number] = self._new_actor()
            if self._lost_loading >= self._control.config.max_attempts * len(self._actors) or time.monotonic() > self._deadline:
                raise UserError(f"the workers die while they load the model: {_brief(error)}; try 'promptmill doctor'") from None
            time.sleep(RESTART_SECONDS)
            self._loading[self._actors[number].load.remote()] = number
        except RayTaskError as error:
            raise _cause(error) from None
        else:
            self._lost_loading = 0
            self._ready.add(number)
            self._control.on_event("worker_ready", actor=number, worker=worker, seconds=round(seconds, 2))

    def _finished(self, ref: Any) -> ShardResult | None:
        number, task = self._running.pop(ref)
        try:
            result: ShardResult = ray.get(ref)
        except RayActorError as error:
            self._lost(number, task, _brief(error))
        except RayTaskError as error:
            cause = _cause(error)
            if not isinstance(cause, ShardError):
                raise cause from None
            self._queue.failed(task, cause)
        else:
            self._queue.succeeded()
            return result
        return None

    def _lost(self, number: int, task: Task, why: str) -> None:
        """The actor's process died. Ray restarts it; the shard is tried again, here or elsewhere."""
        if number in self._ready:
            self._ready.discard(number)
            self._control.on_event("worker_lost", actor=number, error=why)
            self._loading[self._actors[number].load.remote()] = number
            self._deadline = time.monotonic() + START_SECONDS
        self._queue.lost(task, why)

    def _poll_progress(self) -> None:
        """Draws sampled so far by all actors, asked for without waiting."""
        if self._polls:
            answered, _ = ray.wait(list(self._polls), num_returns=len(self._polls), timeout=0)
            for ref in answered:
                number = self._polls.pop(ref)
                try:
                    self._sampled[number], busy_seconds = ray.get(ref)
                    self._kill_if_hung(number, busy_seconds)
                except RayActorError:
                    self._sampled[number] = 0
        for number in self._ready - set(self._polls.values()):
            self._polls[self._actors[number].pulse.remote()] = number
            self._asked[number] = time.monotonic()
        for number in self._ready & set(self._polls.values()):
            self._kill_if_hung(number, time.monotonic() - self._asked[number])
        self._control.on_sampled(sum(self._sampled.values()))

    def _kill_if_hung(self, number: int, seconds: float) -> None:
        """A batch that takes too long, or a process that answers nothing for so long, is ended; Ray restarts the actor."""
        limit = self._control.config.batch_seconds
        if limit is not None and seconds > limit and number in self._ready:
            self._asked[number] = time.monotonic()
            self._control.on_event("worker_hung", actor=number, seconds=round(seconds, 1))
            ray.kill(self._actors[number], no_restart=False)


def _connect(address: str | None, empty_dir: str) -> None:
    """Workers start in an empty folder: else a ``pipeline/`` of the user's own would be imported there.

    Ray installs a SIGTERM handler of its own, which would end the driver without draining; ours comes back.
    """
    handler = signal.getsignal(signal.SIGTERM)
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # Ray's own 30 s are too few on a busy machine
    runtime_env: dict[str, Any] = {"env_vars": environment}
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:  # else this is a submitted job, and its files are the folder
        runtime_env["working_dir"] = empty_dir
    try:
        ray.init(
            address=address or "local",
            runtime_env=runtime_env,
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=None if address else False,
        )
    except Exception as error:  # Ray raises bare Exceptions here
        where = f"Ray cluster at {address}" if address else "a Ray cluster on this machine"
        raise UserError(f"{where}: cannot be used: {_brief(error)}; check the address, or use --executor local") from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _layout(control: Control, num_shards: int) -> tuple[int, dict[str, float]]:
    """How many actors, and what each asks Ray for."""
    have = ray.cluster_resources()
    gpus, cpus = have.get("GPU", 0.0), have.get("CPU", 0.0)
    per_actor = _gpus_per_actor(control, have)
    if per_actor > gpus:
        raise ConfigError(f"executor.gpus_per_actor: an actor needs {per_actor:g} GPUs, the cluster has {gpus:g}; lower it, or set it to 0")
    if control.cpu_threads > cpus:
        raise ConfigError(f"model.cpu_threads: an actor needs {control.cpu_threads} CPU cores, the cluster has {cpus:g}; lower it")
    count = _count(control, num_shards)
    return count, {"num_gpus": per_actor, "num_cpus": min(control.cpu_threads, cpus / count)}


def _count(control: Control, num_shards: int) -> int:
    """Actors that the cluster has room for. On a named cluster a number that is asked for is not cut down to the room:
    actors that wait are what an autoscaler starts nodes for.
    """
    have = ray.cluster_resources()
    per_actor = _gpus_per_actor(control, have)
    room = int(have.get("GPU", 0.0) / per_actor) if per_actor else int(have.get("CPU", 0.0) // control.cpu_threads)
    wanted = control.config.actors or room
    return max(1, min(wanted if control.config.address else min(wanted, room), num_shards))


def _gpus_per_actor(control: Control, have: Mapping[str, float]) -> float:
    given = control.config.gpus_per_actor
    return given if given is not None else (1.0 if have.get("GPU") else 0.0)


def _cause(error: RayTaskError) -> Exception:
    cause = error.cause
    return cause if isinstance(cause, Exception) else error


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
