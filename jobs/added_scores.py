"""``scores/``: what ``promptmill rescore`` added to a shard, a file for each scorer; tied to the shard's images by their sha256."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store import Store
from pipeline.write import parquet_bytes
from schemas import layout
from schemas.records import Marker


def scores_schema() -> pa.Schema:
    """Columns of a file; its metadata tells the scorer's version, and the sha256 of the shard's images."""
    return pa.schema([("sample_id", pa.string()), ("score", pa.float32()), ("truncated", pa.bool_())])


def write_scores(store: Store, marker: Marker, scorer: str, version: str, found: Mapping[str, tuple[float, bool | None]]) -> None:
    """Publish the scores of a shard's images, by sample id: (score, whether the prompt's end was not seen)."""
    schema = scores_schema().with_metadata({"images_sha256": marker.images_sha256, "version": version})
    rows = [{"sample_id": sample_id, "score": score, "truncated": cut} for sample_id, (score, cut) in found.items()]
    store.put(layout.scores_file(marker.shard_id, scorer), parquet_bytes(pa.Table.from_pylist(rows, schema), compression="zstd"))


def read_scores(store: Store, marker: Marker, scorer: str, version: str) -> dict[str, tuple[float, bool | None]] | None:
    """The scores of a shard's images as they are now; None if they are not made yet, by this version, or cannot be read."""
    try:
        data = store.get(layout.scores_file(marker.shard_id, scorer))
        table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True, use_threads=False)
    except (OSError, pa.ArrowException):
        return None
    if dict(table.schema.metadata or {}) != {b"images_sha256": marker.images_sha256.encode(), b"version": version.encode()}:
        return None
    return {row["sample_id"]: (row["score"], row["truncated"]) for row in table.to_pylist()}


def added_columns(store: Store, marker: Marker, scorer: str, version: str, sample_ids: Sequence[str]) -> dict[str, list[Any]]:
    """The three columns of a scorer for these rows; the score is null where there is none."""
    found = read_scores(store, marker, scorer, version) or {}
    pairs = [found.get(sample_id, (None, None)) for sample_id in sample_ids]
    return {
        f"{scorer}_score": [score for score, _ in pairs],
        f"{scorer}_version": [version] * len(pairs),
        f"{scorer}_truncated": [cut for _, cut in pairs],
    }
