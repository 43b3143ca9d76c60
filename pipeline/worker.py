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
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from pipeline import plan, scorers
from pipeline.models.base import ImageModel
from pipeline.models.resolve import ModelCard
from pipeline.scorers.here import on_this_machine
from pipeline.scorers.resolve import ScorerCard
from pipeline.shard import MAX_WAITING_BATCHES, Device, Stages, run_shard
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
        self._to_sample: dict[int, int] = {}  # by shard, draws that are not sampled yet
        self._released: set[int] = set()
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
            unwritten = sum(left == 0 for left in self._to_sample.values()) if self._unwritten_bytes < UNWRITTEN_BYTES else 0
        return SHARDS_AT_ONCE + min(unwritten, SHARDS_UNWRITTEN)

    def run(self, shard_id: int, *, keep_failures: bool = True, carefully: bool = False) -> ShardResult:
        """Make and commit one shard of the plan; carefully if a worker died over it."""
        store = self._stages.store
        shard = self._plan.shard(shard_id)
        carefully = carefully or store.exists(layout.suspects_file(shard_id))
        with self._lock:
            self._to_sample[shard_id] = len(shard.draws)
        try:
            keep = keep_failures or carefully
            result = run_shard(shard, self._stages, stop=lambda: self._must_stop(shard_id), keep_failures=keep, carefully=carefully)
        finally:
            with self._lock:
                self._to_sample.pop(shard_id, None)
                self._released.discard(shard_id)
        if self._profile:
            store.put(layout.profile_file(self._stages.worker), gzip.compress(self._timeline.to_json()))
        return replace(result, peak_rss_bytes=peak_rss_bytes())

    def stop(self) -> None:
        """Finish the current batch, put unfinished shards aside, take no further ones."""
        self._stop.set()

    def release(self, shard_id: int) -> None:
        """Put this shard aside, if it must wait for the device while another one is sampled: an idle worker will go on with it."""
        with self._lock:
            others = sum(left for other, left in self._to_sample.items() if other != shard_id and other not in self._released)
            if others and self._to_sample.get(shard_id):
                self._released.add(shard_id)

    def _must_stop(self, shard_id: int) -> bool:
        return self._stop.is_set() or self._stopped() or shard_id in self._released

    def _count(self, shard_id: int, num_draws: int) -> None:
        with self._lock:
            self.sampled += num_draws
            self._to_sample[shard_id] = self._to_sample.get(shard_id, num_draws) - num_draws

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
