"""``promptmill rescore``: a score more for a run that is made. Reads its images, makes none; the same command goes on where it stopped.

The scores of a shard are published at once, in ``scores/``; when all shards have theirs, the run is judged by the rules that it has,
so that the new columns stand in ``metadata``.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.added_scores import read_scores, write_scores
from jobs.filter import publish
from jobs.judged import added_scorers, read_judged
from jobs.lease import hold
from jobs.run_dir import RunDir, damaged
from pipeline.rescore import score_shard
from pipeline.scorers import load_scorer
from pipeline.scorers.base import Scorer
from pipeline.scorers.resolve import resolve_scorer
from schemas import layout
from schemas.config import FilterConfig
from schemas.config_load import load_scorer_config
from schemas.errors import ConfigError, RunFolderError
from schemas.records import Marker


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescored:
    """What was done. ``before`` counts shards that had their scores already."""

    name: str
    version: str
    images: int
    shards: int
    before: int


def rescore(path: str | Path, scorer: str, *, on_message: Callable[[str], None] = lambda text: None) -> Rescored:
    """Add the scorer ``NAME=MODEL`` or ``NAME={type: ...}`` to a run; its paths are relative to the current folder. Raises UserError."""
    run = RunDir.open(path)
    name, config = load_scorer_config(scorer)
    if name in run.job.scorers:
        raise ConfigError(f"--scorer {name}: the run has a scorer of that name; choose another")
    card = resolve_scorer(name, config, base_dir=Path.cwd())
    with hold(run.store, threading.Event(), on_message) as lease:
        markers = run.markers()
        if not markers:
            raise RunFolderError(f"{run.store.root}: has no committed shard yet; there are no images to score")
        todo = [marker for marker in markers if read_scores(run.store, marker, name, card.version) is None]
        loaded = load_scorer(card, cpu_threads=run.job.config.model.cpu_threads) if todo else None
        images = 0
        for number, marker in enumerate(todo, 1):
            assert loaded is not None
            images += _score(run, marker, loaded)
            lease.check()
            on_message(f"{number} of {len(todo)} shards")
        judged = read_judged(run.store)
        rules = FilterConfig.model_validate(judged.filter) if judged else run.job.config.filter
        publish(run, markers, rules, added=added_scorers(run.store) | {name: card.version}, lease=lease)
        run.log("rescored", scorer=name, version=card.version, shards=len(todo), images=images)
    return Rescored(name=name, version=card.version, images=images, shards=len(todo), before=len(markers) - len(todo))


def _score(run: RunDir, marker: Marker, scorer: Scorer) -> int:
    file = layout.images_file(marker.shard_id)
    try:
        table = pq.read_table(pa.BufferReader(run.store.get(file)), columns=["sample_id", "image"], page_checksum_verification=True)
        images = {row["sample_id"]: row["image"]["bytes"] for row in table.to_pylist()}
        found = score_shard(run.read_shard(marker.shard_id), images, scorer, run.job.config.batch_size)
    except (OSError, pa.ArrowException) as error:
        raise damaged(run, file, error) from None
    write_scores(run.store, marker, scorer.name, scorer.version, found)
    return len(found)
