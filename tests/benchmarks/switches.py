"""What each switch of `model.compute` gives here: `python -m tests.benchmarks.switches [--rounds 3] [--write]`. Prints Markdown tables.

All ways of one model are loaded in one process and draw the same images on one thread of the CPU, in turns, round after round, so
that a machine that slows down slows all. A figure is the median over the rounds of the plain model's seconds of processor time by
the switch's. `--write` puts the tables into docs/speed.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs.bench import machine, smaller
from jobs.prepare import prepare
from pipeline.models import load_model
from pipeline.models.base import ImageModel
from pipeline.models.demo.grammar import sample_scenes
from pipeline.models.demo.judge import Judge
from pipeline.scorers import load_scorer
from pipeline.scorers.base import Scorer
from schemas.config import ModelConfig
from schemas.records import Draw
from tests.benchmarks import narrow_flux, narrow_sd
from tests.benchmarks.page import fill
from tests.conftest import REPOSITORY

Switches = Mapping[str, Any]
FOR_UNETS: dict[str, Switches] = {
    "channels_last": {"channels_last": True},
    "compile: regional": {"compile": "regional"},
    "compile: whole": {"compile": "whole"},
    "channels_last, compile: whole": {"channels_last": True, "compile": "whole"},
    "vae_slicing": {"vae_slicing": True},
    "vae_tiling": {"vae_tiling": True},
    "quantize: int8_weights": {"quantize": "int8_weights"},
    "quantize: int8": {"quantize": "int8"},
    "step_cache: pyramid_attention": {"step_cache": {"kind": "pyramid_attention"}},
}
FOR_TRANSFORMERS: dict[str, Switches] = {
    "attention: native_math": {"attention": "native_math"},
    "compile: regional": {"compile": "regional"},
    "quantize: int8_weights": {"quantize": "int8_weights"},
    "quantize: int8": {"quantize": "int8"},
    "step_cache: first_block": {"step_cache": {"kind": "first_block"}},
    "step_cache: taylor": {"step_cache": {"kind": "taylor"}},
}


@dataclass(frozen=True)
class Measured:
    """One switch against the plain model. ``apart`` is the mean and the largest distance of pixels, in levels of 255, ``right`` the
    number of images that are what the prompt says, by the demo's judge.
    """

    name: str
    speed: float
    lowest: float
    highest: float
    first_seconds: float
    apart: tuple[float, int]
    score: float
    right: int | None


def measure(config: Path, ways: Mapping[str, Switches], *, draws: int, rounds: int, judge: Judge | None = None) -> list[Measured]:
    """All ways in turns; the plain model is the first. A ``judge`` can read drawings of the demo model only."""
    job, sample = smaller(prepare(config), draws)
    size = job.config.batch_size
    scorer = load_scorer(job.scorers[0], cpu_threads=job.config.model.cpu_threads)
    models: dict[str, ImageModel] = {}
    first: dict[str, float] = {}
    for name, switches in {"none": {}, **ways}.items():
        if "quantize" in switches and importlib.util.find_spec("torchao") is None:
            print(f"{name}: left out, torchao is not installed", file=sys.stderr)
            continue
        settings = ModelConfig.model_validate(job.config.model.model_dump() | {"compute": switches})
        models[name] = load_model(job.model, settings)
        started = time.perf_counter()
        _draw(models[name], sample[:size], size)
        first[name] = time.perf_counter() - started
    seconds: dict[str, list[float]] = {name: [] for name in models}
    images: dict[str, np.ndarray] = {}
    for number in range(rounds):
        for name, model in models.items():
            spent, images[name] = _draw(model, sample, size)
            seconds[name].append(spent)
            print(f"round {number + 1}: {name}: {len(sample) / spent:.2f} images/s", file=sys.stderr, flush=True)
    return [_measured(name, seconds, first, images, scorer, sample, size, _right(judge, images[name], sample)) for name in models]


def table(rows: list[Measured]) -> str:
    """Markdown."""
    lines = [
        "| switch | speed | lowest to highest | first batch s | pixels apart, mean (most) | CLIP score |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    judged = rows[0].right is not None
    if judged:
        lines = [lines[0] + " as the prompt says |", lines[1] + " --- |"]
    for one in rows:
        spread, apart = f"{one.lowest:.2f} to {one.highest:.2f}", f"{one.apart[0]:.2f} ({one.apart[1]})"
        lines.append(
            f"| {one.name} | {one.speed:.2f} | {spread} | {one.first_seconds:.1f} | {apart} | {one.score:.3f} |"
            + (f" {one.right} |" if judged else "")
        )
    return "\n".join(lines)


def _right(judge: Judge | None, images_NHWC: np.ndarray, draws: list[Draw]) -> int | None:
    """How many of the demo's images are what their prompt says."""
    if judge is None:
        return None
    scenes = {scene.caption(): scene for scene in sample_scenes(125, seed=0)}  # those of configs/demo_prompts.csv
    return sum(reading.matches(scenes[draw.prompt]) for reading, draw in zip(judge(images_NHWC), draws, strict=True))


def _draw(model: ImageModel, draws: list[Draw], size: int) -> tuple[float, np.ndarray]:
    started = time.process_time()
    made = [model.generate(draws[start : start + size]).images_NHWC for start in range(0, len(draws), size)]
    return time.process_time() - started, np.concatenate(made)


def _measured(
    name: str,
    seconds: Mapping[str, list[float]],
    first: Mapping[str, float],
    images: Mapping[str, np.ndarray],
    scorer: Scorer,
    draws: list[Draw],
    size: int,
    right: int | None,
) -> Measured:
    ratios = [plain / own for plain, own in zip(seconds["none"], seconds[name], strict=True)]
    apart = np.abs(images[name].astype(int) - images["none"].astype(int))
    prompts = [draw.prompt for draw in draws]
    scores = [scorer.score(images[name][start : start + size], prompts[start : start + size]) for start in range(0, len(draws), size)]
    distance = float(apart.mean()), int(apart.max())
    score = float(np.concatenate(scores).mean())
    return Measured(name, statistics.median(ratios), min(ratios), max(ratios), first[name], distance, score, right)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=32, help="images a round of the demo model; an eighth of it of the others")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/speed.md")
    args = parser.parse_args()
    few = max(4, args.draws // 8)
    with tempfile.TemporaryDirectory() as folder:
        jobs = [
            ("The demo model", REPOSITORY / "configs" / "demo.yaml", FOR_UNETS, args.draws, Judge.load()),
            (
                f"A U-Net of Stable Diffusion 1.5's shape at a tenth of its width, {narrow_sd.SIZE_PX} px, random weights",
                narrow_sd.job(Path(folder, "sd")),
                FOR_UNETS,
                few,
                None,
            ),
            (
                f"A transformer of FLUX.1's shape at a tenth of its width, {narrow_flux.SIZE_PX} px, random weights",
                narrow_flux.job(Path(folder, "flux")),
                FOR_TRANSFORMERS,
                few,
                None,
            ),
        ]
        texts = [f"{args.rounds} rounds in turns, one thread, processor time, on {machine()}. The model without switches has speed 1."]
        for title, config, ways, draws, judge in jobs:
            rows = measure(config, ways, draws=draws, rounds=args.rounds, judge=judge)
            texts.append(f"{title}, {draws} images a round:\n\n{table(rows)}")
    print("\n\n".join(texts))
    if args.write:
        fill("switches", texts)


if __name__ == "__main__":
    main()
