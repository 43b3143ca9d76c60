"""One judged shard to its files. Built whole in memory, published one file at a time, marker last.

Order: images, metadata, dead letters, marker. A crash between any two leaves a shard without a marker, which
readers ignore and a resume makes again.
"""

import hashlib
import io
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store import Store
from schemas import layout
from schemas.records import Marker, Outcome, Shard, ShardResult, Status, Verdict
from schemas.tables import image_row, images_schema, metadata_row, metadata_schema

ROW_GROUP_ROWS = 128
ROW_GROUP_BYTES = 100_000_000


def metadata_bytes(
    shard_id: int, outcomes: Sequence[Outcome], verdicts: Sequence[Verdict], versions: Mapping[str, str], image_format: str
) -> bytes:
    """The shard's metadata table as a Parquet file."""
    rows = [metadata_row(outcome, verdict, shard_id, versions, image_format) for outcome, verdict in zip(outcomes, verdicts, strict=True)]
    table = pa.Table.from_pylist(rows, metadata_schema(versions))
    return parquet_bytes(table, compression="zstd", row_group_size=max(1, len(rows)))


def images_bytes(outcomes: Sequence[Outcome], image_format: str) -> bytes:
    """The shard's image table as a Parquet file: bytes as they are, with page checksums."""
    rows = [image_row(outcome, image_format) for outcome in outcomes if outcome.image is not None]
    largest = max((len(row["image"]["bytes"]) for row in rows), default=1)
    group = max(1, min(ROW_GROUP_ROWS, ROW_GROUP_BYTES // max(1, largest)))
    table = pa.Table.from_pylist(rows, images_schema())
    return parquet_bytes(table, compression="none", row_group_size=group, use_dictionary=False, write_statistics=["sample_id"])


def commit_shard(
    store: Store,
    shard: Shard,
    outcomes: Sequence[Outcome],
    verdicts: Sequence[Verdict],
    *,
    versions: Mapping[str, str],
    image_format: str,
    draws_sha256: str,
    seconds: Mapping[str, float],
    worker: str,
    usage: Mapping[str, float] | None = None,
    again: bool = False,
) -> ShardResult:
    """Publish a shard. ``versions`` holds the identity of each scorer by name. Idempotent.

    ``again``: another try may have left dead letters, or something put aside, which is removed.
    """
    started = time.perf_counter()
    images = images_bytes(outcomes, image_format)
    metadata = metadata_bytes(shard.shard_id, outcomes, verdicts, versions, image_format)
    store.put(layout.images_file(shard.shard_id), images)
    store.put(layout.metadata_file(shard.shard_id), metadata)
    failed = [outcome for outcome in outcomes if outcome.image is None]
    if failed:
        store.put(layout.failed_file(shard.shard_id), _dead_letters(failed))
    elif again:
        store.delete(layout.failed_file(shard.shard_id))
    counts = {status: sum(verdict.status is status for verdict in verdicts) for status in Status}
    reasons = Counter(f"{verdict.status} {verdict.reason}" for verdict in verdicts if verdict.status is not Status.ACCEPTED)
    marker = Marker(
        shard_id=shard.shard_id,
        draws=len(verdicts),
        accepted=counts[Status.ACCEPTED],
        rejected=counts[Status.REJECTED],
        failed=counts[Status.FAILED],
        num_bytes=len(images) + len(metadata),
        metadata_sha256=hashlib.sha256(metadata).hexdigest(),
        images_sha256=hashlib.sha256(images).hexdigest(),
        draws_sha256=draws_sha256,
        seconds={stage: round(value, 4) for stage, value in {**seconds, "write": time.perf_counter() - started}.items()},
        worker=worker,
        usage={name: round(value, 6) for name, value in (usage or {}).items()},
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        reasons=dict(sorted(reasons.items())),
    )
    store.put(layout.done_file(shard.shard_id), json.dumps(asdict(marker), indent=1).encode())
    if again:
        store.delete(layout.partial_file(shard.shard_id))
        store.delete(layout.suspects_file(shard.shard_id))
    shared = ("shard_id", "accepted", "rejected", "failed", "num_bytes", "worker", "seconds", "usage")
    return ShardResult(**{name: getattr(marker, name) for name in shared})


def save_partial(store: Store, shard_id: int, outcomes: Sequence[Outcome], draws_sha256: str) -> None:
    """Keep the finished batches of a shard that is asked to stop."""
    rows = [
        {"image": outcome.image, "outcome": json.dumps(_without_draw(outcome)), "sample_id": outcome.draw.sample_id} for outcome in outcomes
    ]
    schema = pa.schema([("sample_id", pa.string()), ("image", pa.binary()), ("outcome", pa.string())], {"draws_sha256": draws_sha256})
    store.put(layout.partial_file(shard_id), parquet_bytes(pa.Table.from_pylist(rows, schema), compression="none"))


def load_partial(store: Store, shard: Shard, draws_sha256: str) -> dict[str, Outcome]:
    """Finished outcomes by sample id; empty if there are none or they are of another plan."""
    try:
        table = pq.read_table(pa.BufferReader(store.get(layout.partial_file(shard.shard_id))), page_checksum_verification=True)
    except (FileNotFoundError, pa.ArrowInvalid, OSError):
        return {}
    if (table.schema.metadata or {}).get(b"draws_sha256") != draws_sha256.encode():
        return {}
    draws = {draw.sample_id: draw for draw in shard.draws}
    return {
        row["sample_id"]: Outcome(draw=draws[row["sample_id"]], image=row["image"], **json.loads(row["outcome"]))
        for row in table.to_pylist()
    }


def _without_draw(outcome: Outcome) -> dict[str, Any]:
    return {name: value for name, value in asdict(outcome).items() if name not in ("draw", "image")}


def _dead_letters(failed: Sequence[Outcome]) -> bytes:
    letters = [{"error": o.error, "attempts": o.attempts, "sample_id": o.draw.sample_id, "draw": o.draw.identity()} for o in failed]
    return json.dumps(letters, ensure_ascii=False, indent=1).encode()


def parquet_bytes(table: pa.Table, **options: Any) -> bytes:
    """A table as a Parquet file, with page checksums. Bytes depend on the chunks of the input, so these are joined first."""
    sink = io.BytesIO()
    pq.write_table(table.combine_chunks(), sink, write_page_checksum=True, **options)
    return sink.getvalue()
