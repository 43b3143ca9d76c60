"""One worker: loads the models once, then turns shard numbers into committed shards.

The local executor calls it directly, the Ray executor from inside an actor; it knows neither.
"""

import ctypes
import gzip
import importlib
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from pipeline import plan, scorers
from pipeline.lending import Batches, Made
from pipeline.models.base import ImageModel
from pipeline.models.resolve import ModelCard
from pipeline.scorers.here import on_this_machine
from pipeline.scorers.resolve import ScorerCard
from pipeline.shard import MAX_WAITING_BATCHES, Device, Stages, help_with, run_shard
from pipeline.store import Store, open_store
from pipeline.timeline import Timeline
from schemas import layout
from schemas.config import JobConfig
from schemas.records import ShardResult

SHARDS_AT_ONCE = 2  # one samples while the other's last images are encoded and written, or while it waits for its turn
SHARDS_UNWRITTEN = 6  # further ones, for as many as wait for a slow store; while they are
UNWRITTEN_BYTES = 512 * 1024**2  # at the most, of images; the shard that goes over it is the last
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 1024**3  # blocks up to this size come from the heap, of which so much may be free


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkOrder:
    """All that a worker needs to know, small and plain enough to be sent anywhere.

    ``model_loader`` names the function (``module:name``) that makes the ImageModel; tests put a fake there. With ``profile``
    a worker writes traces into the run folder.
    """

    root: str
    config: Mapping[str, Any]
    model: ModelCard
    scorers: tuple[ScorerCard, ...]
    model_loader: str = "pipeline.models:load_model"
    profile: bool = False


class ShardWorker:
    """Holds the models of one process. ``run`` may be called from ``capacity`` threads.

    ``loading`` are the seconds that model and scorers took, with the import of their libraries.
    """

    def __init__(self, order: WorkOrder, *, stopped: Callable[[], bool] = lambda: False) -> None:
        """Load the models. Raises ModelError if this machine's files are not those of the plan. Once ``stopped`` says so, it is
        as if ``stop`` had been called.
        """
        keep_freed_memory()
        config = JobConfig.model_validate(order.config)
        self._stop = threading.Event()
        self._stopped = stopped
        self._lock = threading.Lock()
        self._work: list[Batches] = []  # of the shards in flight, or of parts of them
        self._lent: dict[int, Batches] = {}  # by loan
        self._unwritten_bytes = 0
        self.sampled = 0
        cards = [on_this_machine(card, config.scorers[card.name]) for card in order.scorers]  # before anything large is loaded
        device, times = Device(), [time.perf_counter()]
        model = device.call(lambda: _load(order.model_loader)(order.model, config.model))
        times.append(time.perf_counter())
        loaded = device.call(lambda: [scorers.load_scorer(card, cpu_threads=config.model.cpu_threads) for card in cards])
        times.append(time.perf_counter())
        self.loading = {"model": times[1] - times[0], "scorers": times[2] - times[1]}
        store, worker = open_store(order.root), f"{socket.gethostname()}:{os.getpid()}"
        self._profile, self._timeline = order.profile, Timeline()
        self._stages = Stages(
            config=config,
            model=_profiled(model, store, worker) if order.profile else model,
            scorers=loaded,
            store=store,
            encoders=ThreadPoolExecutor(max_workers=MAX_WAITING_BATCHES + 1, thread_name_prefix="encode"),
            worker=worker,
            device=device,
            on_batch=self._count,
            on_stage=self._timeline.add,
            on_write=self._count_bytes,
        )
        self._plan = plan.PlanReader(self._stages.store)

    @property
    def stages(self) -> Stages:
        """What the worker keeps loaded."""
        return self._stages

    @property
    def capacity(self) -> int:
        """How many shards to give it at a time: more while some wait for the store, as long as the buffer lasts."""
        with self._lock:
            unwritten = sum(work.are_sampled for work in self._work) if self._unwritten_bytes < UNWRITTEN_BYTES else 0
        return SHARDS_AT_ONCE + min(unwritten, SHARDS_UNWRITTEN)

    def run(self, shard_id: int, *, keep_failures: bool = True, carefully: bool = False) -> ShardResult:
        """Make and commit one shard of the plan; carefully if a worker died over it."""
        shard = self._plan.shard(shard_id)
        carefully = carefully or self._stages.store.exists(layout.suspects_file(shard_id))
        with self._at_work(shard_id) as work:
            keep = keep_failures or carefully
            result = run_shard(shard, self._stages, stop=self._must_stop, keep_failures=keep, carefully=carefully, work=work)
        return replace(result, peak_rss_bytes=peak_rss_bytes())

    def stop(self) -> None:
        """Finish the current batch, put unfinished shards aside, take no further ones."""
        self._stop.set()

    def lend(self, loan: int, idle: int) -> tuple[int, list[str]] | None:
        """Let one of ``idle`` workers make a part of a shard: sample ids that are not begun; None if there are none.

        ``take_back`` must follow, with the number of the loan.
        """
        with self._lock:
            most = -(-sum(map(len, self._work)) // (idle + 1))  # so that all end at about the same time
            for work in reversed(self._work):
                if draws := work.lend(loan, most):
                    self._lent[loan] = work
                    return work.shard_id, [draw.sample_id for draw in draws]
        return None

    def help_with(self, shard_id: int, sample_ids: Collection[str]) -> Made:
        """Make what another worker has lent of a shard. It may be lent on."""
        with self._at_work(shard_id) as work:
            return help_with(self._plan.shard(shard_id), sample_ids, self._stages, work, stop=self._must_stop)

    def take_back(self, loan: int, made: Made | None) -> None:
        """Go on with a shard of which a helper made this; None if it was lost."""
        with self._lock:
            work = self._lent.pop(loan, None)
        if work is not None:
            work.take_back(loan, made)

    @contextmanager
    def _at_work(self, shard_id: int) -> Iterator[Batches]:
        work = Batches(shard_id)
        with self._lock:
            self._work.append(work)
        try:
            yield work
        finally:
            with self._lock:
                self._work.remove(work)
            if self._profile:
                self._stages.store.put(layout.profile_file(self._stages.worker), gzip.compress(self._timeline.to_json()))

    def _must_stop(self) -> bool:
        return self._stop.is_set() or self._stopped()

    def _count(self, num_draws: int) -> None:
        with self._lock:
            self.sampled += num_draws

    def _count_bytes(self, num_bytes: int) -> None:
        with self._lock:
            self._unwritten_bytes += num_bytes


def _profiled(model: ImageModel, store: Store, worker: str) -> ImageModel:
    from pipeline.models.profiled import ProfiledModel

    return ProfiledModel(model, lambda trace: store.put(layout.profile_file(worker, ops=True), gzip.compress(trace)))


def peak_rss_bytes() -> int:
    """The most main memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def keep_freed_memory() -> None:
    """Have glibc keep what is freed. A network's layers take and free the same large blocks again and again; a block that was given
    back to the system comes back page by page, each of them cleared: https://man7.org/linux/man-pages/man3/mallopt.3.html.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None  # musl has none
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def _load(dotted: str) -> Any:
    module, _, name = dotted.partition(":")
    return getattr(importlib.import_module(module), name)
