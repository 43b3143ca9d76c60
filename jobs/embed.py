"""``promptmill embed``: keep the CLIP features of a run's images. Reads images, makes none; the same command goes on where it stopped."""

import io
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from jobs.embeddings import Encoder, file_of, write_encoder, write_features
from jobs.encoder import load_encoder
from jobs.lease import hold
from jobs.run_dir import RunDir, damaged
from schemas import layout
from schemas.errors import RunFolderError
from schemas.records import Marker

BATCH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """What was done. ``before`` counts shards that had their features already."""

    version: str
    images: int
    shards: int
    before: int


def embed(path: str | Path, *, clip: str | None = None, on_message: Callable[[str], None] = lambda text: None) -> Embedded:
    """Write the features of all images by the run's CLIP model, or by another. Raises UserError; what was written then stays."""
    run = RunDir.open(path)
    encoder = load_encoder(run, clip)
    with hold(run.store, threading.Event(), on_message) as lease:
        markers = run.markers()
        if not markers:
            raise RunFolderError(f"{run.store.root}: has no committed shard yet; there are no images to look at")
        there = set(run.store.list(layout.EMBEDDINGS))
        todo = [marker for marker in markers if file_of(marker, encoder.version) not in there]
        images = 0
        for number, marker in enumerate(todo, 1):
            images += _embed(run, marker, encoder)
            lease.check()
            on_message(f"{number} of {len(todo)} shards")
        write_encoder(run.store, Encoder(encoder.version, _dimensions(encoder)))
        for name in there - {file_of(marker, encoder.version) for marker in markers} - {layout.EMBEDDINGS_INDEX}:
            run.store.delete(name)
        run.log("embedded", version=encoder.version, shards=len(todo), images=images)
    return Embedded(version=encoder.version, images=images, shards=len(todo), before=len(markers) - len(todo))


def _embed(run: RunDir, marker: Marker, encoder: Any) -> int:
    file = layout.images_file(marker.shard_id)
    try:
        table = pq.read_table(pa.BufferReader(run.store.get(file)), columns=["sample_id", "image"], page_checksum_verification=True)
        data = [image["bytes"] for image in table["image"].to_pylist()]
        features_ND = _features(encoder, data)
    except (OSError, pa.ArrowException) as error:
        raise damaged(run, file, error) from None
    write_features(run.store, file_of(marker, encoder.version), table["sample_id"].to_pylist(), features_ND)
    return len(data)


def _features(encoder: Any, images: list[bytes]) -> np.ndarray:
    """Float32 (N, D), in batches that are filled up to one size: features do not depend on how many images a shard has."""
    found = [np.zeros((0, 1), dtype=np.float32)]
    for start in range(0, len(images), BATCH):
        batch = [_pixels(data) for data in images[start : start + BATCH]]
        filled = batch + batch[-1:] * (BATCH - len(batch))
        found.append(encoder.images(filled).cpu().numpy()[: len(batch)])
    return np.concatenate(found[1:] or found)


def _dimensions(encoder: Any) -> int:
    return int(encoder.images([np.zeros((8, 8, 3), dtype=np.uint8)]).shape[1])


def _pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))
