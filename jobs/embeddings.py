"""``embeddings/``: CLIP features of a run's images, kept for likeness, diversity and queries.

A file's name stands for the images of its shard and for the model, so files of images that were made again, or of another model, are
not found. ``embeddings.json`` names the model that readers look for; it is written when every shard has its file.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.run_dir import RunDir
from pipeline.store import Store
from pipeline.write import parquet_bytes
from schemas import layout
from schemas.errors import RunFolderError
from schemas.records import Marker
from schemas.tables import embeddings_schema


@dataclass(frozen=True, slots=True)
class Encoder:
    """``embeddings/embeddings.json``: identity of the model, and the length D of its features."""

    version: str
    dimensions: int


def read_encoder(store: Store) -> Encoder | None:
    """The model whose features a run has, None if it has none. Raises RunFolderError."""
    try:
        return Encoder(**json.loads(store.get(layout.EMBEDDINGS_INDEX)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        raise RunFolderError(f"{store.root}/{layout.EMBEDDINGS_INDEX}: is damaged; delete it, and run 'promptmill embed' again") from None


def write_encoder(store: Store, encoder: Encoder) -> None:
    """Make readers look for the features of this model."""
    store.put(layout.EMBEDDINGS_INDEX, json.dumps(asdict(encoder), indent=1).encode())


def file_of(marker: Marker, version: str) -> str:
    """Where the features of a shard's images are, by this model."""
    return layout.embeddings_file(marker.shard_id, hashlib.sha256(f"{marker.images_sha256}\n{version}".encode()).hexdigest()[:16])


def files(run: RunDir, markers: Sequence[Marker]) -> list[str]:
    """Files of the shards that have their features."""
    encoder = read_encoder(run.store)
    if encoder is None:
        return []
    there = set(run.store.list(layout.EMBEDDINGS))
    return [name for marker in markers if (name := file_of(marker, encoder.version)) in there]


def write_features(store: Store, name: str, sample_ids: Sequence[str], features_ND: np.ndarray) -> None:
    """Publish the features of a shard's images."""
    data = pa.array(features_ND.astype(np.float16).ravel(), pa.float16())
    offsets = pa.array(np.arange(len(sample_ids) + 1, dtype=np.int32) * (features_ND.shape[1] if len(sample_ids) else 0))
    columns = [pa.array(sample_ids, pa.string()), pa.ListArray.from_arrays(offsets, data)]
    store.put(name, parquet_bytes(pa.table(columns, schema=embeddings_schema()), compression="none", use_dictionary=False))


def read_features(run: RunDir, markers: Sequence[Marker], sample_ids: Sequence[str]) -> np.ndarray | None:
    """Features of these images, float16 (N, D), all 0 for one that has none; None if the run has no features at all.

    Raises RunFolderError if a file is damaged.
    """
    encoder = read_encoder(run.store)
    if encoder is None:
        return None
    at = {sample_id: number for number, sample_id in enumerate(sample_ids)}
    found_ND = np.zeros((len(sample_ids), encoder.dimensions), dtype=np.float16)
    for name in files(run, markers):
        try:
            table = pq.read_table(pa.BufferReader(run.store.get(name)), page_checksum_verification=True)
            values = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, encoder.dimensions)
        except (OSError, ValueError, pa.ArrowException) as error:
            why = str(error).splitlines()[0]
            again = "delete it, and run 'promptmill embed' again"
            raise RunFolderError(f"{run.store.root}/{name}: cannot be read ({why}); {again}") from None
        rows = [(at[sample_id], row) for row, sample_id in enumerate(table["sample_id"].to_pylist()) if sample_id in at]
        if rows:
            to, of = map(list, zip(*rows, strict=True))
            found_ND[to] = values[of]
    return found_ND
