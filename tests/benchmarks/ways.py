"""One way of making images, in a process of its own: `python -m tests.benchmarks.ways WAY CONFIG DRAWS`, a line of JSON out.

Each way makes the same draws with the same model and scorer. `seconds` count from the moment at which the models of the
way are loaded, the slower first batch included, `startup_seconds` until then. What a way does not do by itself (writing, in
the bare loops) it is not asked for.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from jobs import run as run_verb
from jobs.bench import smaller
from jobs.prepare import Prepared, prepare
from pipeline.models.bare import BareLoop
from pipeline.plan import batches
from pipeline.scorers import load_scorer
from pipeline.worker import peak_rss_bytes
from schemas.records import Draw

CORES = os.cpu_count() or 1


class Result(NamedTuple):
    """Seconds of work, seconds until then, and the most memory that a process with the models had."""

    seconds: float
    startup_seconds: float
    peak_rss_bytes: int


def limit(job: Prepared, draws: list[Draw]) -> Result:
    """Forward passes of generator and CLIP alone, one process of one thread per core: what nothing can beat here."""
    context = multiprocessing.get_context("spawn")
    ready, seconds = context.Barrier(CORES + 1), context.Queue()
    parts = [draws[core * len(draws) // CORES : (core + 1) * len(draws) // CORES] for core in range(CORES)]
    started = time.perf_counter()
    processes = [context.Process(target=_passes, args=(job, part, ready, seconds)) for part in parts]
    for process in processes:
        process.start()
    ready.wait()
    startup = time.perf_counter() - started
    found = [seconds.get() for _ in processes]
    for process in processes:
        process.join()
    return Result(max(spent for spent, _ in found), startup, max(rss for _, rss in found))


def _passes(job: Prepared, draws: list[Draw], ready: Any, seconds: Any) -> None:
    loop, scorers = _loaded(job, threads=1), _scorers(job, threads=1)
    ready.wait()
    seconds.put((len(draws) / loop.images_per_second(batches(draws, job.config.batch_size), scorers), peak_rss_bytes()))


def bare_loop(job: Prepared, draws: list[Draw]) -> Result:
    """A loop over batches on all cores, in one process."""
    return _bare(job, draws, job.config.batch_size)


def one_by_one(job: Prepared, draws: list[Draw]) -> Result:
    """A loop over prompts, one at a time: what a data library does that calls the pipeline for each row."""
    return _bare(job, draws, 1)


def datadreamer(job: Prepared, draws: list[Draw]) -> Result:
    """What datadreamer 0.2 does by default, re-enacted, since its models are named in its code: one prompt, CLIP, a JPEG file, the next.

    https://github.com/luxonis/datadreamer, ``ImageGenerator.generate_images`` and ``pipelines/generate_dataset_from_scratch.py``.
    """
    started = time.perf_counter()
    loop, scorers = _loaded(job, threads=CORES), _scorers(job, threads=CORES)
    startup = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        for number, draw in enumerate(draws):
            images = loop.draw([draw])
            for scorer in scorers:
                scorer.score(images, [draw.prompt])
            Image.fromarray(images[0]).save(Path(folder) / f"image_{number}.jpg")
        seconds = time.perf_counter() - started
    return Result(seconds, startup, peak_rss_bytes())


def _bare(job: Prepared, draws: list[Draw], size: int) -> Result:
    started = time.perf_counter()
    loop, scorers = _loaded(job, threads=CORES), _scorers(job, threads=CORES)
    startup = time.perf_counter() - started
    return Result(len(draws) / loop.images_per_second(batches(draws, size), scorers), startup, peak_rss_bytes())


class RayDataActor:
    """The class that Ray's documentation hands to map_batches, with a seed per row."""

    def __init__(self, job: Prepared) -> None:
        self._loop, self._scorers, self._first = _loaded(job, threads=1), _scorers(job, threads=1), True

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        began = time.time()
        draws = list(batch.pop("draw"))
        images = self._loop.draw(draws)
        scores = {scorer.name: scorer.score(images, [draw.prompt for draw in draws]) for scorer in self._scorers}
        return (
            batch
            | scores
            | {"image": [_png(image) for image in images], "began": [began] * len(draws), "rss": [peak_rss_bytes()] * len(draws)}
        )


def ray_data(job: Prepared, draws: list[Draw]) -> Result:
    """Ray Data: map_batches with an actor per core, then write_parquet."""
    import ray

    started, size = time.time(), job.config.batch_size
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.from_items(
        [{"prompt": draw.prompt, "seed": draw.seed, "draw": draw} for draw in draws], override_num_blocks=len(draws) // size
    )
    with tempfile.TemporaryDirectory() as folder:
        made = rows.map_batches(
            RayDataActor, fn_constructor_args=(job,), batch_size=size, compute=ray.data.ActorPoolStrategy(size=CORES), num_cpus=1
        )
        made.write_parquet(folder)
        ended = time.time()
        table = ray.data.read_parquet(folder).to_pandas()
    ray.shutdown()
    return Result(ended - min(table["began"]), min(table["began"]) - started, int(max(table["rss"])))


def promptmill_local(job: Prepared, draws: list[Draw]) -> Result:
    """promptmill in this process, all cores."""
    return _promptmill(job, {"kind": "local"}, threads=CORES)


def promptmill_ray_1(job: Prepared, draws: list[Draw]) -> Result:
    """promptmill on Ray, one actor of all cores."""
    return _promptmill(job, {"kind": "ray", "actors": 1}, threads=CORES)


def promptmill_ray(job: Prepared, draws: list[Draw]) -> Result:
    """promptmill on Ray, an actor per core: its default."""
    return _promptmill(job, {"kind": "ray", "actors": CORES}, threads=1)


def _promptmill(job: Prepared, executor: dict[str, Any], *, threads: int) -> Result:
    config = job.config.model_copy(
        update={
            "executor": job.config.executor.model_copy(update=executor),
            "model": job.config.model.model_copy(update={"cpu_threads": threads}),
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        report = run_verb.run(replace(job, config=config), out=folder)
    return Result(report.steady_seconds, report.startup_seconds, report.peak_rss_bytes)


def _loaded(job: Prepared, *, threads: int) -> BareLoop:
    return BareLoop(job.model, job.config.model, threads)


def _scorers(job: Prepared, *, threads: int) -> list[Any]:
    return [load_scorer(card, cpu_threads=threads) for card in job.scorers]


def _png(image_HWC: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(image_HWC).save(sink, "PNG")
    return sink.getvalue()


WAYS: dict[str, Callable[[Prepared, list[Draw]], Result]] = {
    way.__name__: way for way in (limit, bare_loop, one_by_one, datadreamer, ray_data, promptmill_local, promptmill_ray_1, promptmill_ray)
}


def main() -> None:
    way, config, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    job, draws = smaller(prepare(config), count)
    found = WAYS[way](job, draws)
    print(json.dumps({"images": len(draws), **found._asdict()}))


if __name__ == "__main__":
    main()
