"""The CLIP model whose image features a command compares."""

from pathlib import Path
from typing import Any

from jobs.run_dir import RunDir
from pipeline.scorers import load_scorer
from pipeline.scorers.resolve import resolve_scorer
from schemas.config import ScorerConfig
from schemas.errors import ModelError


def load_encoder(run: RunDir, clip: str | None = None) -> Any:
    """A CLIP scorer, of which ``images`` gives features: the model that is named, else the first of the run. Raises ModelError."""
    threads = run.job.config.model.cpu_threads
    if clip:
        return load_scorer(resolve_scorer("clip", ScorerConfig(model=clip), base_dir=Path.cwd()), cpu_threads=threads)
    for name, config in run.job.config.scorers.items():
        if config.type == "clip":
            return load_scorer(resolve_scorer(name, config, base_dir=Path(run.job.base_dir)), cpu_threads=threads)
    raise ModelError("--clip: the run has no CLIP scorer; name a model, such as ViT-B-32/laion2b_s34b_b79k")
