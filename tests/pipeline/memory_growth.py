"""Bytes of memory an image by which a worker grows: `python -m tests.pipeline.memory_growth pipeline|models [leak]`, one number out.

A process of its own, with an allocator that gives back what is freed, so that a few hundred bytes an image are seen.
"""

import ctypes
import gc
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import theilslopes

from pipeline.inputs import Conditions
from pipeline.models.base import Generated, ImageModel
from pipeline.scorers.base import Scorer
from pipeline.shard import Stages, run_shard
from pipeline.store import LocalStore
from schemas.records import Draw, Shard
from tests.fakes import Brightness, FakeModel, fake_config, make_draw, scorer_card

ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "OMP_NUM_THREADS": "1",
}
BATCH = 32


class Hoarder:
    """A model that keeps a copy of each image."""

    name = revision = "hoarder"

    def __init__(self, model: ImageModel) -> None:
        self._model = model
        self._kept: list[np.ndarray] = []

    def generate(self, draws: Sequence[Draw], conditions: Sequence[Conditions] = ()) -> Generated:
        made = self._model.generate(draws, conditions)
        self._kept.append(made.images_NHWC.copy())
        return made


def growth(model: ImageModel, scorers: Sequence[Scorer], folder: Path, *, shards: int, shard_size: int, size_px: int) -> float:
    """The Theil-Sen slope over the shards, the first third being the warm-up. Every prompt is another."""
    config = fake_config(sampling={"batch_size": BATCH}, output={"shard_size": shard_size}, scorers={scorer.name: {} for scorer in scorers})
    after: list[int] = []
    with ThreadPoolExecutor(1) as encoders:
        stages = Stages(config=config, model=model, scorers=scorers, store=LocalStore(folder), encoders=encoders, worker="test")
        for number in range(shards):
            numbers = range(number * shard_size, (number + 1) * shard_size)
            draws = [make_draw(index, prompt=f"picture {index}", width=size_px, height=size_px) for index in numbers]
            assert run_shard(Shard(shard_id=number, draws=tuple(draws)), stages, stop=lambda: False).failed == 0
            after.append(_resident_bytes())
    slope: Any = theilslopes(after[shards // 3 :])[0]
    return float(slope) / shard_size


def _resident_bytes() -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    rollup = Path("/proc/self/smaps_rollup").read_text()  # exact, unlike statm
    return int(rollup.split("Private_Dirty:")[1].split()[0]) * 1024


def _models(folder: Path) -> tuple[ImageModel, list[Scorer]]:
    """A real pipeline and a real CLIP that keep embeddings of 64 texts."""
    from pipeline.models import embeddings
    from pipeline.scorers import clip, load_scorer
    from pipeline.scorers.resolve import resolve_scorer
    from schemas.config import ScorerConfig
    from tests.pipeline.models import tiny
    from tests.pipeline.models.conftest import load
    from tests.pipeline.scorers import tiny_clip

    embeddings._CAPACITY_BYTES = 64 * 77 * 32 * 4
    clip._CAPACITY = 64
    card = resolve_scorer("clip", ScorerConfig(model=str(tiny_clip.make(folder / "clip"))), base_dir=folder)
    return load(tiny.sd(folder / "sd")), [load_scorer(card)]


def main() -> None:
    which, leak = sys.argv[1], "leak" in sys.argv[2:]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if which == "pipeline":
            model, scorers = FakeModel(), [Brightness(scorer_card())]
            sizes = {"shards": 9 if leak else 30, "shard_size": 352, "size_px": 16}  # 10,560 images
        else:
            model, scorers = _models(folder)
            sizes = {"shards": 12, "shard_size": 64, "size_px": 32}
        print(growth(Hoarder(model) if leak else model, scorers, folder / "run", **sizes))


if __name__ == "__main__":
    main()
