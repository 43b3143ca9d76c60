"""``sampling.batch_size: auto``: taken from the run folder if it was started before, else chosen where the workers run."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

from jobs.prepare import Prepared
from jobs.run_dir import RunDir
from pipeline.batch_size import Trial, choose
from pipeline.worker import WorkOrder
from schemas.config import JobConfig


def settled(
    prepared: Prepared, out: str | Path | None, *, on_message: Callable[[str], None], model_loader: str = "pipeline.models:load_model"
) -> Prepared:
    """The job with a number for its batch size; without ``out`` no run folder is looked into. Raises UserError."""
    if prepared.config.sampling.batch_size != "auto":
        return prepared
    size = RunDir.batch_size(out) if out else None
    if size is None:
        order = WorkOrder(
            root=str(out or prepared.out),
            config=prepared.config.model_dump(mode="json"),
            model=prepared.model,
            scorers=prepared.scorers,
            model_loader=model_loader,
        )
        size = _ask(order, _trial(prepared), prepared.config)
        on_message(f"sampling.batch_size: {size}, chosen for this job and this kind of device")
    sampling = prepared.config.sampling.model_copy(update={"batch_size": size})
    return replace(prepared, config=prepared.config.model_copy(update={"sampling": sampling}))


def _trial(prepared: Prepared) -> Trial:
    prompt, config = next(prepared.open_prompts()), prepared.config
    return Trial(
        draw=max(prepared.expand(prompt), key=lambda draw: draw.width * draw.height),
        draws_at_once=max(1, config.output.shard_size // len(config.sampling.settings())),
        gpu_share=min(1.0, config.executor.gpus_per_actor or 1.0),
        inputs={image.sha256: image.data for image in prompt.images.values()},
    )


def _ask(order: WorkOrder, trial: Trial, config: JobConfig) -> int:
    """In a process of its own, which gives the GPU's memory back when it ends; for a cluster, where one of its actors would be."""
    if config.executor.kind == "ray" and config.executor.address:
        from jobs.ray_pool import call_on_ray

        return call_on_ray(config.executor, config.model.cpu_threads, choose, order, trial)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(choose, order, trial).result()
