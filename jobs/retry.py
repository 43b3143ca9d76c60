"""``promptmill run --retry-failed``: the failed draws of a run are made again, and nothing else.

A shard with failures becomes one that was stopped half-way: its images are put aside, its commit marker is taken
away, and the run goes on with what is missing. Killed in between, the shard is whole as before or resumes.
"""

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.run_dir import RunDir, damaged
from pipeline.write import save_partial
from schemas import layout
from schemas.records import Marker, Outcome, Status
from schemas.tables import outcome_from_row


def reopen_failed(run_dir: RunDir) -> int:
    """Take the failed draws of all committed shards back into the run; how many there were. Raises RunFolderError."""
    markers = [marker for marker in run_dir.markers() if marker.failed]
    for marker in markers:
        save_partial(run_dir.store, marker.shard_id, _made(run_dir, marker), marker.draws_sha256)
        run_dir.store.delete(layout.suspects_file(marker.shard_id))
        run_dir.store.delete(layout.done_file(marker.shard_id))
    return sum(marker.failed for marker in markers)


def _made(run_dir: RunDir, marker: Marker) -> list[Outcome]:
    """The shard's draws that did not fail, as they came out."""
    rows = _read(run_dir, layout.metadata_file(marker.shard_id))
    images = {row["sample_id"]: row["image"]["bytes"] for row in _read(run_dir, layout.images_file(marker.shard_id))}
    made = [row for row in rows if row["status"] != Status.FAILED]
    missing = [row["sample_id"] for row in made if row["sample_id"] not in images]
    if missing:
        raise damaged(run_dir, layout.images_file(marker.shard_id), f"lacks image {missing[0]}")
    return [outcome_from_row(row, images[row["sample_id"]], run_dir.job.scorers) for row in made]


def _read(run_dir: RunDir, name: str) -> list[dict]:
    try:
        return pq.read_table(pa.BufferReader(run_dir.store.get(name)), page_checksum_verification=True).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise damaged(run_dir, name, error) from None
