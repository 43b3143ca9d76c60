"""What happens to one shard: sample -> score -> judge -> write. Read this file first.

Sampling and scoring share the device, which a shard holds until its last batch; encoding and hashing of one batch run in threads
while the next batch is sampled; the last encodings and the writing overlap with the next shards, which
other threads of the worker have begun.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

from pipeline import plan, suspects
from pipeline.encode import Encoded, encode
from pipeline.filter import judge
from pipeline.lending import Batches, Made
from pipeline.models.base import ImageModel, Metered, Timed
from pipeline.sample import OutOfMemory, Sampled, failed, sample_batch, score_batch
from pipeline.scorers.base import Scorer
from pipeline.store import Store
from pipeline.write import commit_shard, load_partial, save_partial
from schemas import layout
from schemas.config import JobConfig, OutputConfig
from schemas.errors import RunFolderError, ShardError
from schemas.records import Draw, Outcome, Shard, ShardResult

T = TypeVar("T")
log = logging.getLogger(__name__)

MAX_WAITING_BATCHES = 2  # sampled batches that wait for an encoder: bounds memory when encoding is slower than sampling
LOOK_SECONDS = 0.1  # between two looks of a shard that waits for its turn, whether it must stop


class Device:
    """The device of a worker: one shard at a time, and what the worker has learned about it.

    Shards that took turns batch by batch would be sampled at the same moment, and the device idle while all of them are written.
    ``batch_size`` is the largest batch that fits its memory, None while all did. All that computes on it is called from one thread:
    OpenMP keeps a team of threads for each caller, and teams that together outnumber the cores sleep between any two layers
    (https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html).
    """

    def __init__(self) -> None:
        self.batch_size: int | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")
        self._lock = threading.Lock()
        self._since: float | None = None

    @contextmanager
    def turn(self, stop: Callable[[], bool]) -> Iterator[bool]:
        """Hold the device; or False, if ``stop`` became true while another shard held it."""
        while not (held := self._lock.acquire(timeout=LOOK_SECONDS)):
            if stop():
                break
        try:
            yield held
        finally:
            if held:
                self._lock.release()

    def call(self, function: Callable[[], T]) -> T:
        """Call it in the device's thread."""
        return self._thread.submit(function).result()

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Time one batch, by whoever holds the device."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    @property
    def busy_seconds(self) -> float:
        """How long the current batch has taken, 0 between batches."""
        since = self._since
        return time.monotonic() - since if since is not None else 0.0


@dataclass(frozen=True, kw_only=True)
class Stages:
    """Everything that a worker keeps from shard to shard."""

    config: JobConfig
    model: ImageModel
    scorers: Sequence[Scorer]
    store: Store
    encoders: Executor
    worker: str
    device: Device = field(default_factory=Device)
    on_batch: Callable[[int], None] = lambda num_draws: None
    on_stage: Callable[[str, float, float], None] = lambda stage, start_seconds, seconds: None
    on_write: Callable[[int], None] = lambda num_bytes: None  # images that begin to wait for the store; minus as many once it has them

    def get_input(self, sha256: str) -> bytes:
        """Bytes of an input image. Raises RunFolderError."""
        name = layout.input_file(sha256)
        try:
            return self.store.get(name)
        except FileNotFoundError:
            raise RunFolderError(
                f"{self.store.root}/{name}: is missing; delete {layout.PLAN_INDEX} and run the same command again, it is copied anew"
            ) from None


def run_shard(
    shard: Shard,
    stages: Stages,
    *,
    stop: Callable[[], bool],
    keep_failures: bool = True,
    carefully: bool = False,
    work: Batches | None = None,
) -> ShardResult:
    """Make, judge and commit one shard.

    ``stop`` is asked before each batch; once it is true the finished batches are put aside for the resume and
    the result says ``drained``. With ``keep_failures`` false, a shard of which every draw failed raises
    ShardError instead of being committed: likelier a broken worker than a hundred bad prompts. ``carefully`` is
    for a shard that a worker died over: see ``pipeline.suspects``. From ``work`` others may take batches meanwhile.
    """
    digest = plan.draws_digest(shard.draws)
    clock = _Clock(stages.on_stage)
    kept = load_partial(stages.store, shard, digest)
    if carefully:
        outcomes, drained = _make_carefully(shard, digest, kept, stages, stop, clock)
    else:
        outcomes, drained = _make(shard, kept, stages, stop, clock, Batches(shard.shard_id) if work is None else work)
    if drained:
        if outcomes:
            save_partial(stages.store, shard.shard_id, outcomes, digest)
        return ShardResult(shard_id=shard.shard_id, worker=stages.worker, seconds=clock.seconds, usage=clock.usage, drained=True)
    if not keep_failures and _looks_broken(outcomes):
        raise ShardError(f"shard {shard.shard_id}: all {len(outcomes)} draws failed, the first with {outcomes[0].error}")
    with clock("judge"):
        verdicts = judge(outcomes, stages.config.filter, scorers=[s.name for s in stages.scorers], rankable=_rankable(stages.config))
    with clock("write"), _unwritten(outcomes, stages):
        result = commit_shard(
            stages.store,
            shard,
            outcomes,
            verdicts,
            versions={scorer.name: scorer.version for scorer in stages.scorers},
            image_format=stages.config.output.image_format,
            draws_sha256=digest,
            seconds=clock.seconds,
            usage=clock.usage,
            worker=stages.worker,
            again=carefully or bool(kept),
        )
    result = replace(result, batch_size=stages.device.batch_size)
    log.info("shard %05d: %d accepted, %d rejected, %d failed", shard.shard_id, result.accepted, result.rejected, result.failed)
    return result


def help_with(shard: Shard, sample_ids: Collection[str], stages: Stages, work: Batches, *, stop: Callable[[], bool]) -> Made:
    """Make draws of a shard that another worker will commit; fewer of them, if stopped."""
    clock = _Clock(stages.on_stage)
    part = replace(shard, draws=tuple(draw for draw in shard.draws if draw.sample_id in sample_ids))
    outcomes, _ = _make(part, {}, stages, stop, clock, work)
    return Made(outcomes=tuple(outcomes), seconds=clock.seconds, usage=clock.usage)


def remake(draws: Sequence[Draw], stages: Stages) -> list[Outcome]:
    """Make draws again outside any shard, at the planned batch shape; for ``verify``."""
    outcomes, clock = list[Outcome](), _Clock(stages.on_stage)
    for batch in plan.batches(draws, stages.config.batch_size):
        outcomes += _encode_batch(_sample_and_score(batch, stages, clock), stages.config.output, clock)
    by_id = {outcome.draw.sample_id: outcome for outcome in outcomes}
    return [by_id[draw.sample_id] for draw in draws]


def _make(
    shard: Shard, kept: Mapping[str, Outcome], stages: Stages, stop: Callable[[], bool], clock: "_Clock", work: Batches
) -> tuple[list[Outcome], bool]:
    """All outcomes in the plan's order; or, if stopped, those that are finished, and True. ``kept`` were finished before."""
    finished = dict(kept)
    futures: list[Future[list[Outcome]]] = []
    if finished:
        stages.on_batch(len(finished))
    missing = [[draw for draw in batch if draw.sample_id not in finished] for batch in plan.batches(shard.draws, stages.config.batch_size)]
    work.fill([batch for batch in missing if batch])
    stopped = False
    while work.are_open and not stopped:
        with clock.turn(stages.device, stop) as is_mine:
            while not (stopped := not is_mine or stop()) and (batch := work.take()):
                with clock("wait"):
                    if len(futures) > MAX_WAITING_BATCHES:
                        futures[-1 - MAX_WAITING_BATCHES].result()
                with stages.device.batch():
                    sampled = _sample_and_score(batch, stages, clock)
                futures.append(stages.encoders.submit(_encode_batch, sampled, stages.config.output, clock))
                stages.on_batch(len(batch))
        with clock("wait"):
            lent = work.collect()
        for made in lent:
            clock.include(made)
            finished |= {outcome.draw.sample_id: outcome for outcome in made.outcomes}
    for future in futures:
        finished |= {outcome.draw.sample_id: outcome for outcome in future.result()}
    outcomes = [finished[draw.sample_id] for draw in shard.draws if draw.sample_id in finished]
    return outcomes, len(outcomes) < len(shard.draws)


def _make_carefully(
    shard: Shard, digest: str, kept: Mapping[str, Outcome], stages: Stages, stop: Callable[[], bool], clock: "_Clock"
) -> tuple[list[Outcome], bool]:
    """As ``_make``, but for a shard that a process died over: one step after the other, each noted before and kept after."""
    finished = dict(kept)
    note = suspects.load(stages.store, shard.shard_id, digest)

    def so_far() -> list[Outcome]:
        return [finished[draw.sample_id] for draw in shard.draws if draw.sample_id in finished]

    with clock.turn(stages.device, stop) as is_mine:
        for batch in plan.batches(shard.draws, stages.config.batch_size):
            for group in note.groups([draw for draw in batch if draw.sample_id not in finished]):
                if not is_mine or stop():
                    suspects.save(stages.store, shard.shard_id, note)
                    return so_far(), True
                with stages.device.batch():
                    if note.is_condemned(group[0]):
                        sampled = [_killer(group[0], stages)]
                    else:
                        suspects.save(stages.store, shard.shard_id, note, trying=group)
                        sampled = _sample_and_score(group, stages, clock)
                    finished |= {outcome.draw.sample_id: outcome for outcome in _encode_batch(sampled, stages.config.output, clock)}
                    save_partial(stages.store, shard.shard_id, so_far(), digest)
            stages.on_batch(len(batch))
    suspects.save(stages.store, shard.shard_id, note)
    return so_far(), False


@contextmanager
def _unwritten(outcomes: Sequence[Outcome], stages: Stages) -> Iterator[None]:
    num_bytes = sum(len(outcome.image) for outcome in outcomes if outcome.image is not None)
    stages.on_write(num_bytes)
    try:
        yield
    finally:
        stages.on_write(-num_bytes)


def _killer(draw: Draw, stages: Stages) -> Sampled:
    why = f"the worker's process died or hung {suspects.DEATHS} times while it made this draw alone"
    return failed(draw, stages.config.batch_size, "process_died", why, attempts=suspects.DEATHS)


def _sample_and_score(batch: Sequence[Draw], stages: Stages, clock: "_Clock") -> list[Sampled]:
    return stages.device.call(lambda: _on_device(batch, stages, clock))


def _on_device(batch: Sequence[Draw], stages: Stages, clock: "_Clock") -> list[Sampled]:
    """A batch that the device's memory does not hold is made in halves, and so are all later ones of this worker."""
    device, planned = stages.device, stages.config.batch_size
    while True:
        size = min(planned, device.batch_size or planned)
        try:
            parts = [batch[start : start + size] for start in range(0, len(batch), size)]
            return [one for part in parts for one in _at_size(part, size, stages, clock)]
        except OutOfMemory as error:
            device.batch_size = size // 2
            log.warning("a batch of %d does not fit into memory (%s); going on with %d", size, error, device.batch_size)


def _at_size(part: Sequence[Draw], size: int, stages: Stages, clock: "_Clock") -> list[Sampled]:
    try:
        with clock("sample"):
            sampled = sample_batch(stages.model, part, size, stages.get_input)
            clock.use(stages.model.take_usage() if isinstance(stages.model, Metered) else {})
        clock.split("sample", stages.model.take_seconds() if isinstance(stages.model, Timed) else {})
        with clock("score"):
            score_batch(stages.scorers, sampled, size)
    except OutOfMemory as error:
        if size > 1:
            raise
        return [failed(part[0], size, "out_of_memory", str(error), attempts=1)]
    return sampled


def _encode_batch(sampled: Sequence[Sampled], output: OutputConfig, clock: "_Clock") -> list[Outcome]:
    with clock("encode"):
        encoded = [encode(one.image_HWC, output) if one.image_HWC is not None else None for one in sampled]
    clock.split("encode", {"hash": sum(one.hash_seconds for one in encoded if one)})
    return [_outcome(one, image) for one, image in zip(sampled, encoded, strict=True)]


def _outcome(one: Sampled, encoded: Encoded | None) -> Outcome:
    return Outcome(
        draw=one.draw,
        image=encoded.data if encoded else None,
        image_sha256=encoded.sha256 if encoded else None,
        phash=encoded.phash if encoded else None,
        is_blank=encoded.is_blank if encoded else False,
        safety_flagged=one.safety_flagged,
        scores=one.scores if encoded else {},
        scores_truncated=one.scores_truncated,
        prompt_tokens=one.prompt_tokens,
        prompt_truncated=one.prompt_truncated,
        batch_shape=one.batch_shape,
        error=one.error,
        attempts=one.attempts,
    )


def _looks_broken(outcomes: Sequence[Outcome]) -> bool:
    """Whether every draw failed, and none because a server would not draw it: that is an answer, not a breakdown."""
    return all(outcome.image is None and not (outcome.error or "").startswith("refused:") for outcome in outcomes)


def _rankable(config: JobConfig) -> bool:
    """Whether every prompt lies whole in one shard."""
    return config.images_per_prompt <= config.output.shard_size


class _Clock:
    """Seconds per stage of one shard, and what its model used. Encoding adds up from threads, so it can exceed the wall clock."""

    def __init__(self, on_stage: Callable[[str, float, float], None]) -> None:
        self._on_stage = on_stage
        self.seconds: dict[str, float] = {}
        self.usage: dict[str, float] = {}
        self._lock = threading.Lock()

    def use(self, usage: Mapping[str, float]) -> None:
        self.usage = {name: self.usage.get(name, 0) + usage.get(name, 0) for name in self.usage | dict(usage)}

    def include(self, made: Made) -> None:
        """Count what a helper did."""
        self.use(made.usage)
        with self._lock:
            self.seconds = {stage: self.seconds.get(stage, 0) + made.seconds.get(stage, 0) for stage in self.seconds | dict(made.seconds)}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._add(stage, start)

    @contextmanager
    def turn(self, device: Device, stop: Callable[[], bool]) -> Iterator[bool]:
        """As ``Device.turn``; the wait for it counts as ``wait``."""
        start = time.perf_counter()
        with device.turn(stop) as is_mine:
            self._add("wait", start)
            yield is_mine

    def split(self, stage: str, parts: Mapping[str, float]) -> None:
        """Count parts of a stage by themselves."""
        with self._lock:
            for name, seconds in parts.items():
                self.seconds[name] = self.seconds.get(name, 0.0) + seconds
                self.seconds[stage] -= seconds

    def _add(self, stage: str, start: float) -> None:
        seconds = time.perf_counter() - start
        self._on_stage(stage, start, seconds)
        with self._lock:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
