"""``promptmill bench``: what the pipeline costs over a bare diffusers loop, in one interleaved measurement."""

import os
import platform
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from jobs import run as run_verb
from jobs.batch_size import settled
from jobs.prepare import Prepared
from pipeline.plan import batches
from pipeline.scorers import load_scorer
from schemas.config import PromptsConfig, SamplingConfig
from schemas.errors import ModelError
from schemas.records import Draw


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Images per second of one way of doing it, a figure per round; start-up apart."""

    name: str
    rates: tuple[float, ...]
    startup_seconds: float

    @property
    def median(self) -> float:
        return statistics.median(self.rates)

    @property
    def lowest(self) -> float:
        return min(self.rates)

    @property
    def highest(self) -> float:
        return max(self.rates)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """All ways, and the pipeline's stages: (name, seconds per image, share of the workers' time)."""

    draws: int
    rounds: int
    machine: str
    ways: tuple[Way, ...]
    ratio: float
    stages: tuple[tuple[str, float, float], ...]


def bench(prepared: Prepared, *, draws: int, rounds: int, on_message: Callable[[str], None]) -> BenchResult:
    """Measure a bare loop on all cores and the whole pipeline in turn, ``rounds`` times, over the same draws.

    The ratio is the median of the rounds' ratios, so that a machine that slows down slows both. Raises ModelError for a model that no
    such loop compares with.
    """
    from pipeline.models.bare import BareLoop

    if prepared.config.model.endpoint:
        raise ModelError(
            f"model {prepared.config.model.id}: is an endpoint, which no loop on this machine compares with; bench another model"
        )
    prepared = settled(prepared, None, on_message=on_message)
    batch_size = prepared.config.batch_size
    wanted = max(batch_size, draws // batch_size * batch_size)
    prepared, sample = smaller(prepared, wanted)
    inputs = {image.sha256: image.data for prompt in prepared.open_prompts() for image in prompt.images.values()}
    groups = batches(sample, batch_size)
    for line in left_out(prepared.config.sampling):
        on_message(line)
    threads = os.cpu_count() or 1
    started = time.perf_counter()
    loop = BareLoop(prepared.model, prepared.config.model, threads)
    scorers = [load_scorer(card, cpu_threads=threads) for card in prepared.scorers]
    bare_startup = time.perf_counter() - started
    loop.images_per_second(groups[:1], scorers, inputs)  # warm-up
    bare, whole, reports = [], [], []
    for number in range(rounds):
        bare.append(loop.images_per_second(groups, scorers, inputs))
        with tempfile.TemporaryDirectory() as folder:
            reports.append(run_verb.run(prepared, out=Path(folder) / "run"))
        whole.append(reports[-1].images_per_second)
        on_message(f"round {number + 1}: bare loop {bare[-1]:.2f}, pipeline {whole[-1]:.2f} images/s")
    ways = (
        Way(name=f"bare diffusers loop + CLIP, {threads} threads", rates=tuple(bare), startup_seconds=bare_startup),
        Way(
            name=f"promptmill run, {reports[-1].workers} workers",
            rates=tuple(whole),
            startup_seconds=statistics.median(report.startup_seconds for report in reports),
        ),
    )
    ratio = statistics.median(b / a for a, b in zip(bare, whole, strict=True))
    return BenchResult(draws=len(sample), rounds=rounds, machine=machine(), ways=ways, ratio=ratio, stages=_stages(reports))


def machine() -> str:
    """Processor and core count of this machine."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        name = next((line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores"


def left_out(sampling: SamplingConfig) -> list[str]:
    """What the bare loop does not do as the job does, a line each."""
    lines = {
        "guidance_interval": "the bare loop guides in all steps, not just in sampling.guidance_interval",
        "prompt_weighting": "the bare loop reads prompts without their weights, and as far as the model does by itself",
    }
    return [line for name, line in lines.items() if getattr(sampling, name)]


def smaller(prepared: Prepared, wanted: int) -> tuple[Prepared, list[Draw]]:
    """The same job over ``wanted`` draws of a setting only, one per prompt where there are enough prompts."""
    prompts = list(islice(prepared.open_prompts(), wanted))
    per_prompt = -(-wanted // len(prompts))
    prompts = prompts[: -(-wanted // per_prompt)]
    source = PromptsConfig(texts=[prompt.text for prompt in prompts], draws_per_prompt=per_prompt)
    config = prepared.config.model_copy(update={"prompts": source})
    smaller = replace(prepared, config=config, prompts=tuple(prompts))
    found = [draw for prompt in smaller.open_prompts() for draw in smaller.expand(prompt)]
    return smaller, found


def _stages(reports: list[run_verb.RunReport]) -> tuple[tuple[str, float, float], ...]:
    seconds: Counter[str] = Counter()
    for report in reports:
        seconds.update(report.stages)
    images = sum(report.made_now for report in reports)
    worker_seconds = sum(report.steady_seconds * max(1, report.workers) for report in reports)
    del seconds["wait"]  # a shard's turn comes while the worker's other shard is on the device
    return tuple((stage, spent / images, spent / worker_seconds) for stage, spent in seconds.most_common())
