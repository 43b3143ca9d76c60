"""``promptmill run``: start a job, or take it up where it stopped. The whole course of a run is in ``run``."""

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from jobs.batch_size import settled
from jobs.executor import Control, Executor
from jobs.expand import ask, count_requests, with_answers
from jobs.filter import judge_again
from jobs.interrupt import STOPPED, draining
from jobs.judged import read_judged
from jobs.judged_tables import gather
from jobs.lease import hold
from jobs.prepare import Prepared
from jobs.retry import reopen_failed
from jobs.rounds import next_round
from jobs.run_dir import RunDir, Settled
from pipeline import plan
from pipeline.worker import WorkOrder
from schemas import layout
from schemas.errors import ModelError
from schemas.records import PlanIndex, ShardResult, Status


@dataclass(slots=True, kw_only=True)
class Tally:
    """Counts of a run while it goes on. Draws of earlier starts are in ``before``; seconds are wall clock.

    ``startup`` are seconds by part: ``plan`` until the plan was there, ``workers`` until the first one loads, ``model``, ``scorers``.
    """

    planned: int = 0
    before: int = 0
    shards: int = 0
    accepted: int = 0
    rejected: int = 0
    failed: int = 0
    sampled: int = 0
    workers: int = 0
    retries: int = 0
    abandoned: int = 0
    started: float = field(default_factory=time.monotonic)
    first_ready: float | None = None
    first_sampled: float | None = None
    last_result: float | None = None
    startup: dict[str, float] = field(default_factory=dict)
    stages: Counter[str] = field(default_factory=Counter)
    peak_rss_bytes: int = 0

    @property
    def committed(self) -> int:
        """Draws committed by this start."""
        return self.accepted + self.rejected + self.failed

    def add(self, result: ShardResult) -> None:
        """Count a committed shard."""
        self.last_result = time.monotonic()
        self.shards += 1
        self.accepted += result.accepted
        self.rejected += result.rejected
        self.failed += result.failed
        self.stages.update(result.seconds)
        self.peak_rss_bytes = max(self.peak_rss_bytes, result.peak_rss_bytes)

    def planned_now(self) -> None:
        """The plan is there."""
        self.startup["plan"] = time.monotonic() - self.started

    def ready(self, loading: Mapping[str, float]) -> None:
        """The first worker is ready."""
        self.first_ready = time.monotonic()
        self.startup["workers"] = max(0.0, self.startup_seconds - self.startup.get("plan", 0.0) - sum(loading.values()))
        self.startup |= loading

    @property
    def startup_seconds(self) -> float:
        """From the start of the run until the first worker was ready."""
        return (self.first_ready or time.monotonic()) - self.started

    @property
    def steady_seconds(self) -> float:
        """From the first ready worker until the latest committed shard, which leaves out the end of the cluster."""
        return max(0.0, self.last_result - self.first_ready) if self.first_ready and self.last_result else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """How a run ended. Counts are over the whole dataset, by the verdicts that hold; rates over this start."""

    root: str
    planned: int
    accepted: int
    rejected: int
    failed: int
    made_now: int
    abandoned: int
    stopped: bool
    startup_seconds: float
    startup: dict[str, float]
    first_images_seconds: float | None
    steady_seconds: float
    workers: int
    peak_rss_bytes: int
    stages: dict[str, float]

    @property
    def exit_code(self) -> int:
        """0 all made, 1 some draws failed or were abandoned, 130 stopped."""
        return STOPPED if self.stopped else int(bool(self.failed or self.abandoned))

    @property
    def images_per_second(self) -> float:
        """Of this start, in the steady seconds."""
        return self.made_now / self.steady_seconds if self.steady_seconds else 0.0


def run(
    prepared: Prepared,
    *,
    out: str | Path | None = None,
    retry_failed: bool = False,
    profile: bool = False,
    model_loader: str = "pipeline.models:load_model",
    on_tally: Callable[[Tally], None] = lambda tally: None,
    on_message: Callable[[str], None] = lambda text: None,
) -> RunReport:
    """Make everything of the job that is not made yet, and with ``retry_failed`` also what failed before.

    With ``profile`` workers write traces into the run folder. Raises UserError; whatever was committed stays.
    """
    if profile and prepared.config.model.endpoint:
        raise ModelError(f"model {prepared.config.model.id}: an endpoint's server cannot be profiled from here; take --profile out")
    tally = Tally()
    out = out or prepared.out
    prepared = settled(prepared, out, model_loader=model_loader, on_message=on_message)
    run_dir = RunDir.claim(out, prepared.job())
    prepared = with_answers(prepared, run_dir.store)
    index = plan.survey(run_dir.store, prepared.open_prompts)
    count_requests(prepared)
    stop = threading.Event()
    order = WorkOrder(
        root=run_dir.store.root,
        config=prepared.config.model_dump(mode="json"),
        model=prepared.model,
        scorers=prepared.scorers,
        model_loader=model_loader,
        profile=profile,
    )
    with hold(run_dir.store, stop, on_message) as lease:
        report = _run(run_dir, index, prepared, order, tally, retry_failed, stop, on_tally, on_message)
        run_dir.store.flush()
        lease.check()
        if not report.stopped and gather(run_dir, lease):
            on_message("the metadata of the run's shards was gathered in larger tables, for queries")
        elif judge_again(run_dir, lease):
            on_message("the new shards were judged by the rules that 'promptmill filter' gave this run")
        judged = read_judged(run_dir.store)
    return report if judged is None else replace(report, accepted=judged.accepted, rejected=judged.rejected)


def _run(
    run_dir: RunDir,
    index: PlanIndex | None,
    prepared: Prepared,
    order: WorkOrder,
    tally: Tally,
    retry_failed: bool,
    stop: threading.Event,
    on_tally: Callable[[Tally], None],
    on_message: Callable[[str], None],
) -> RunReport:
    """The course of a run whose folder is held."""
    resumed = run_dir.begin()
    if index is None:
        prepared = ask(run_dir, prepared, stop, on_message)
        if stop.is_set():
            return _report(run_dir, PlanIndex(num_prompts=0, num_draws=0, prompts_sha256="", shards=()), Settled(), tally, stopped=True)
        config = prepared.config
        index = plan.write_plan(run_dir.store, prepared.open_prompts, prepared.expand, config.output.shard_size, config.batch_size)
    found = run_dir.settle(index)
    problems = found.problems
    if retry_failed and (again := reopen_failed(run_dir)):
        on_message(f"{again} failed draws are tried again")
        found = run_dir.settle(index)
    run_dir.log(
        "resume" if resumed else "start",
        draws=index.num_draws,
        shards=index.num_shards,
        shards_done=found.shards_done,
        host=socket.gethostname(),
        pid=os.getpid(),
    )
    for problem in problems:
        run_dir.log("shard_damaged", found=problem)
        on_message(f"{problem}; the shard is made again")
    tally.planned, tally.before = index.num_draws, found.draws_done
    if resumed:
        on_message(f"{run_dir.store.root}: {found.shards_done} of {index.num_shards} shards are done, going on with the rest")
    tally.planned_now()
    todo = found.todo
    while True:
        if todo:
            _execute(run_dir, order, todo, tally, stop, on_tally, on_message)
            run_dir.store.remove_leftovers()  # of workers that were killed while they wrote
        is_whole = tally.before + tally.committed == index.num_draws
        longer = next_round(run_dir, index, prepared, on_message) if is_whole else None
        if longer is None:
            break
        run_dir.log("round", number=longer.rounds, draws=longer.num_draws - index.num_draws)
        todo, index = list(range(index.num_shards, longer.num_shards)), longer
        tally.planned, tally.workers = index.num_draws, 0
        if stop.is_set():
            break
    if is_whole:
        run_dir.clear_partial()
    report = _report(run_dir, index, found, tally, stop.is_set())
    run_dir.log("drained" if report.stopped else "finish", **{k: v for k, v in asdict(report).items() if k not in ("root", "stages")})
    return report


def _execute(
    run_dir: RunDir,
    order: WorkOrder,
    todo: list[int],
    tally: Tally,
    stop: threading.Event,
    on_tally: Callable[[Tally], None],
    on_message: Callable[[str], None],
) -> None:
    """Run the shards, until all are done or ``stop`` is set and the current batches are finished."""
    config = run_dir.job.config

    def on_event(event: str, **facts: object) -> None:
        run_dir.log(event, **facts)
        tally.workers += {"worker_ready": 1, "worker_lost": -1}.get(event, 0)
        tally.retries += event == "shard_retry"
        tally.abandoned += event == "shard_abandoned"
        if event == "worker_ready" and tally.first_ready is None:
            tally.ready(facts["loading"])  # type: ignore[arg-type]
        if event in ("nodes_awaited", "worker_lost", "worker_hung", "worker_refused", "shard_retry", "shard_abandoned", "batch_halved"):
            on_message(f"{event.replace('_', ' ')}: " + ", ".join(f"{key} {value}" for key, value in facts.items()))
        on_tally(tally)

    def on_sampled(draws: int) -> None:
        tally.sampled = draws
        if draws and tally.first_sampled is None:
            tally.first_sampled = time.monotonic()
        on_tally(tally)

    executor = config.executor
    if config.model.endpoint and executor.gpus_per_actor is None:
        executor = executor.model_copy(update={"gpus_per_actor": 0.0})
    known: dict[int, bytes] = {}

    def learned(shard_id: int) -> bool:
        try:
            note = run_dir.store.get(layout.suspects_file(shard_id))
        except FileNotFoundError:
            return False
        before, known[shard_id] = known.get(shard_id), note
        return note != before

    control = Control(
        config=executor, cpu_threads=config.model.cpu_threads, on_event=on_event, on_sampled=on_sampled, stop=stop, learned=learned
    )
    batch_sizes: dict[str, int] = {}
    with draining(stop, executor.grace_seconds, on_message):
        for result in _executor(config.executor.kind)(order, todo, control):
            if not result.drained:
                tally.add(result)
                if result.batch_size is not None and batch_sizes.get(result.worker) != result.batch_size:
                    batch_sizes[result.worker] = result.batch_size
                    on_event("batch_halved", worker=result.worker, batch_size=result.batch_size)
                used = {"usage": result.usage} if result.usage else {}
                run_dir.log("shard_done", shard_id=result.shard_id, worker=result.worker, draws=result.draws, failed=result.failed, **used)
            elif result.usage:
                run_dir.log("shard_aside", shard_id=result.shard_id, worker=result.worker, usage=result.usage)
            on_tally(tally)


def _executor(kind: str) -> Executor:
    if kind == "local":
        from jobs.local import run_local

        return run_local
    from jobs.ray_pool import run_on_ray

    return run_on_ray


def _report(run_dir: RunDir, index: PlanIndex, found: Settled, tally: Tally, stopped: bool) -> RunReport:
    counts = _counts(run_dir, found, tally)
    return RunReport(
        root=run_dir.store.root,
        planned=index.num_draws,
        **counts,
        made_now=tally.committed,
        abandoned=tally.abandoned,
        stopped=stopped and (sum(counts.values()) < index.num_draws or not index.num_draws),
        startup_seconds=round(tally.startup_seconds, 2),
        startup={part: round(seconds, 2) for part, seconds in tally.startup.items()},
        first_images_seconds=round(tally.first_sampled - tally.started, 2) if tally.first_sampled else None,
        steady_seconds=round(tally.steady_seconds, 2),
        workers=tally.workers,
        peak_rss_bytes=tally.peak_rss_bytes,
        stages={stage: round(seconds, 2) for stage, seconds in tally.stages.items()},
    )


def _counts(run_dir: RunDir, found: Settled, tally: Tally) -> dict[str, int]:
    """Draws of the whole dataset by status: those found at the start and those whose results came back. If more shards are there, since
    a worker died that had committed one, the markers are read.
    """
    if len(run_dir.store.list(layout.DONE)) == found.shards_done + tally.shards:
        return {status.value: getattr(found, status) + getattr(tally, status) for status in Status}
    counts: Counter[str] = Counter()
    for _, marker in run_dir.each_marker():
        counts.update({status: getattr(marker, status) if marker else 0 for status in Status})
    return {status.value: counts[status] for status in Status}
