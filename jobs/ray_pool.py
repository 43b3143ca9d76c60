"""Executor on Ray: one actor per GPU (or per share of the CPU cores), each a ``ShardWorker``.

Only shard numbers and counts travel; images go from the actor to storage. Ray schedules and restarts
actors, the driver alone decides about retries (``max_task_retries=0``).
"""

import contextlib
import logging
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from jobs.actor import Actor
from jobs.actor_layout import Layout
from jobs.executor import POLL_SECONDS, Control, Task, TaskQueue
from jobs.ray_loans import Loans
from jobs.ray_metrics import Metrics
from jobs.ray_nodes import first_room, room
from pipeline.worker import SHARDS_AT_ONCE, SHARDS_UNWRITTEN, WorkOrder
from schemas.config import ExecutorConfig
from schemas.errors import ConfigError, ModelError, ShardError, UserError
from schemas.records import ShardResult

log = logging.getLogger(__name__)

PASSED_ON = (  # settings of the driver that its workers must share; never credentials, which Ray would write to its logs
    "HF_HUB_OFFLINE",
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_CACHE",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
)
CALLS_AT_ONCE = SHARDS_AT_ONCE + SHARDS_UNWRITTEN + 4  # of one actor
RESTART_SECONDS = 0.2  # between two looks at an actor that Ray restarts
LOOK_SECONDS = 5.0  # between two looks for nodes that have joined
START_SECONDS = 600  # for an actor to load its models, before the wait is given up
REFUSED_SECONDS = 600  # before an actor that could not load its models is asked again


def run_on_ray(order: WorkOrder, shard_ids: Sequence[int], control: Control) -> Iterator[ShardResult]:
    """Make the shards on actors of the named cluster, or of one started on this machine and ended with the run."""
    with tempfile.TemporaryDirectory(prefix="promptmill-") as empty:
        _connect(control.config.address, empty)
        try:
            first = _first_room(control)
            if first is not None:
                metrics = Metrics(order.root)
                yield from metrics.counted(_Pool(order, shard_ids, metrics.listening(control), first).results())
        finally:
            ray.shutdown()


def call_on_ray(config: ExecutorConfig, cpu_threads: int, function: Callable[..., Any], *args: object) -> Any:
    """Call a function once, with the share of a node that an actor has."""
    with tempfile.TemporaryDirectory(prefix="promptmill-") as empty:
        _connect(config.address, empty)
        try:
            first = first_room(config, cpu_threads)
            assert first is not None, "nobody stops it"
            remote: Any = ray.remote(function).options(max_retries=0, **first.share)
            return ray.get(remote.remote(*args))
        except RayTaskError as error:
            raise _cause(error) from None
        finally:
            ray.shutdown()


class _Pool:
    """The driver's loop over actors, each with as many shards in flight as its ``ShardWorker.capacity`` was when it was last asked."""

    def __init__(self, order: WorkOrder, shard_ids: Sequence[int], control: Control, first: Layout) -> None:
        self._control = control
        self._queue = TaskQueue(shard_ids, control)
        self._num_shards = len(shard_ids)
        self._config = control.config.model_copy(update={"gpus_per_actor": first.num_gpus})  # whatever nodes join later
        remote: Any = ray.remote(Actor).options(max_restarts=-1, max_task_retries=0, max_concurrency=CALLS_AT_ONCE, **first.share)
        self._new_actor: Callable[[], Any] = lambda: remote.remote(order)
        self._actors = [self._new_actor() for _ in range(first.count(control.config, self._num_shards))]
        self._loans = Loans(self._actors, control.on_event)
        self._lost_loading = 0
        self._loading: dict[Any, int] = {actor.load.remote(): number for number, actor in enumerate(self._actors)}
        self._running: dict[Any, tuple[int, Task]] = {}
        self._in_flight: Counter[int] = Counter()
        self._capacity: dict[int, int] = {}  # of the actors that said so since they were loaded
        self._poll_at = 0.0
        self._ready: set[int] = set()
        self._refused: dict[int, Exception] = {}
        self._ask_again: dict[int, float] = {}
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
            self._share_out()
            self._grow()
            if self._control.stop.is_set() and not self._stopping:
                self._stopping = True
                for actor in self._actors:
                    actor.stop.remote()
            waiting = [*self._running, *self._loading, *self._loans.calls]
            done, _ = ray.wait(waiting, num_returns=1, timeout=POLL_SECONDS)
            self._poll_progress()
            for ref in done:
                if ref in self._loading:
                    self._loaded(ref)
                elif ref not in self._running:
                    self._helped(ref)
                elif (result := self._finished(ref)) is not None:
                    yield result
            if not self._ready and time.monotonic() > self._deadline:
                raise next(iter(self._refused.values()), _none_ready())

    def _hand_out(self) -> None:
        """Give each ready actor its next shards; the least busy first. A shard that an actor died over gets one for itself: the next
        death would take the others' tries.
        """
        while self._queue and not self._control.stop.is_set():
            limits = {number: 1 if self._queue.next_is_deadly else self._capacity.get(number, SHARDS_AT_ONCE) for number in self._ready}
            free = [number for number in self._ready - self._alone if self._in_flight[number] < limits[number]]
            if not free:
                return
            number = min(free, key=lambda n: (self._in_flight[n], n))
            task = self._queue.take()
            self._running[self._actors[number].run.remote(task.shard_id, task.is_last, task.carefully)] = (number, task)
            self._in_flight[number] += 1
            self._loans.has_shard(number)

    @property
    def _alone(self) -> set[int]:
        """Actors that are at a shard which one has died over."""
        return {number for number, task in self._running.values() if task.carefully}

    def _share_out(self) -> None:
        """At the end of the run: idle actors help the busy ones."""
        if not self._queue and not self._control.stop.is_set():
            self._loans.ask(self._ready - self._alone, {number for number in self._ready if self._in_flight[number]})

    def _helped(self, ref: Any) -> None:
        if failed := self._loans.came(ref):
            helper, error = failed
            if isinstance(error, RayActorError):
                self._lost(helper, _brief(error))
            elif isinstance(error, RayTaskError) and isinstance(cause := _cause(error), ModelError):
                self._set_aside(helper, cause)

    def _grow(self) -> None:
        """Use nodes that have joined, and those that could not load before. Actors of nodes that have left wait for room,
        the others take their shards.
        """
        if self._control.stop.is_set() or not self._queue or time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + LOOK_SECONDS
        with contextlib.suppress(ConfigError):  # no room at all, at the moment
            now = room(self._config, self._control.cpu_threads)
            for number in range(len(self._actors), now.count(self._config, self._num_shards)):
                self._actors.append(self._new_actor())
                self._loading[self._actors[number].load.remote()] = number
        for number in [number for number, at in self._ask_again.items() if at < time.monotonic()]:
            del self._ask_again[number]
            self._loading[self._actors[number].load.remote()] = number

    def _loaded(self, ref: Any) -> None:
        number = self._loading.pop(ref)
        try:
            worker, loading = ray.get(ref)
        except RayActorError as error:
            if not isinstance(error, ActorUnavailableError):  # it will not come back by itself
                self._lost_loading += 1
                self._actors[number] = self._new_actor()
            if self._lost_loading >= self._control.config.max_attempts * len(self._actors) or time.monotonic() > self._deadline:
                raise UserError(f"the workers die while they load the model: {_brief(error)}; try 'promptmill doctor'") from None
            time.sleep(RESTART_SECONDS)
            self._loading[self._actors[number].load.remote()] = number
        except RayTaskError as error:
            self._set_aside(number, _cause(error))
        else:
            self._lost_loading = 0
            self._refused.pop(number, None)
            self._capacity.pop(number, None)
            self._ready.add(number)
            self._control.on_ready(worker, loading, actor=number)

    def _finished(self, ref: Any) -> ShardResult | None:
        number, task = self._running.pop(ref)
        self._in_flight[number] -= 1
        try:
            result: ShardResult = ray.get(ref)
        except RayActorError as error:
            self._lost(number, _brief(error))
            self._queue.lost(task, _brief(error))
        except RayTaskError as error:
            cause = _cause(error)
            if isinstance(cause, ModelError):  # Ray restarted the actor on a node that cannot load
                self._queue.give_back(task)
                self._set_aside(number, cause)
            elif isinstance(cause, ShardError):
                self._queue.failed(task, cause)
            else:
                raise cause from None
        else:
            self._queue.succeeded()
            return result
        return None

    def _set_aside(self, number: int, why: Exception) -> None:
        """The actor cannot load the models, since its node lacks files or has others; the others do the work.

        It keeps its place, so that Ray puts no further actor there. Raises its error if there is no other actor.
        """
        self._ready.discard(number)
        told = str(why) if isinstance(why, UserError) else _brief(why)
        if str(self._refused.get(number)) != str(why):
            self._control.on_event("worker_refused", actor=number, error=told)
        self._refused[number] = why
        self._ask_again[number] = time.monotonic() + REFUSED_SECONDS
        if len(self._refused) == len(self._actors):
            raise why from None

    def _lost(self, number: int, why: str) -> None:
        """The actor's process died. Ray restarts it; its shards are tried again, here or elsewhere."""
        if number in self._ready:
            self._ready.discard(number)
            self._control.on_event("worker_lost", actor=number, error=why)
            self._loading[self._actors[number].load.remote()] = number
            self._deadline = time.monotonic() + START_SECONDS

    def _poll_progress(self) -> None:
        """Draws sampled so far by all actors, asked for now and then without waiting."""
        if time.monotonic() < self._poll_at:
            return
        self._poll_at = time.monotonic() + POLL_SECONDS
        if self._polls:
            answered, _ = ray.wait(list(self._polls), num_returns=len(self._polls), timeout=0)
            for ref in answered:
                number = self._polls.pop(ref)
                try:
                    self._sampled[number], busy_seconds, self._capacity[number] = ray.get(ref)
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


def _first_room(control: Control) -> Layout | None:
    def on_wait(needs: str) -> None:
        control.on_event("nodes_awaited", actors=control.config.actors or 1, each_needs=needs)

    return first_room(control.config, control.cpu_threads, on_wait=on_wait, stopped=control.stop.is_set)


def _none_ready() -> UserError:
    return UserError(f"no worker was ready after {START_SECONDS} s; see 'ray status' for what the cluster lacks")


def _cause(error: RayTaskError) -> Exception:
    cause = error.cause
    return cause if isinstance(cause, Exception) else error


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
