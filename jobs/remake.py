"""Makes draws of a finished run again, from what the run itself records."""

from collections.abc import Callable, Sequence
from pathlib import Path

from jobs.run_dir import RunDir
from pipeline.models.resolve import resolve_model
from pipeline.scorers.resolve import resolve_scorer
from pipeline.shard import remake
from pipeline.worker import ShardWorker, WorkOrder
from schemas.errors import ModelError
from schemas.records import Draw, Outcome


def remaker(run_dir: RunDir, *, model_loader: str = "pipeline.models:load_model") -> Callable[[Sequence[Draw]], list[Outcome]]:
    """A function that makes draws again at the planned batch shape.

    Raises ModelError if the model's files are no longer those that the run was made with.
    """
    config, base_dir = run_dir.job.config, Path(run_dir.job.base_dir)
    if config.model.endpoint:
        raise ModelError(f"model {config.model.id}: images of an endpoint cannot be made again; verify without --regenerate")
    model = resolve_model(config.model, base_dir=base_dir, mode=config.sampling.mode)
    recorded = run_dir.job.model["revision"]
    if model.revision != recorded:
        raise ModelError(f"{model.folder}: is {model.revision}, the run was made with {recorded}; bring that revision back to compare")
    scorers = tuple(resolve_scorer(name, card, base_dir=base_dir) for name, card in config.scorers.items())
    order = WorkOrder(
        root=run_dir.store.root, config=config.model_dump(mode="json"), model=model, scorers=scorers, model_loader=model_loader
    )
    stages = ShardWorker(order).stages
    return lambda draws: remake(draws, stages)
