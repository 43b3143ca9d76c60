"""Images of a run that satisfy a condition, each with its row and checked against its sha256; streamed.

Rows are asked for in ranges of shards and images read in batches, so memory is bounded whatever the run's size. The order is
the plan's. Damage stops the stream: what was handed out before is right, and nothing wrong is handed out.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from jobs.judged import added_scorers, read_judged
from jobs.query import query
from jobs.run_dir import RunDir, damaged
from pipeline.store import is_url, open_objects
from schemas import layout
from schemas.errors import QueryError, RunFolderError
from schemas.records import Marker
from schemas.tables import images_schema, metadata_schema

ROWS_AT_A_TIME = 500_000  # of metadata, about 250 MB
IMAGES_AT_A_TIME = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which images: an SQL condition on ``metadata`` and a status, ``accepted``, ``rejected`` or ``all`` of both."""

    where: str = "true"
    only: str = "accepted"

    @property
    def sql(self) -> str:
        """Both as one condition; failed draws have no image."""
        status = "status != 'failed'" if self.only == "all" else f"status = '{self.only}'"
        return f"{status} and ({self.where}\n)"


def columns(run: RunDir) -> list[str]:
    """Names of the metadata's columns."""
    return metadata_schema([*run.job.scorers, *added_scorers(run.store)]).names


def expression(run: RunDir, column: str) -> str:
    """SQL of a column, or of a tag that is written ``tags.NAME``. Raises QueryError."""
    if column.startswith("tags."):
        return "tags['" + column.removeprefix("tags.").replace("'", "''") + "']"
    if column not in columns(run):
        raise QueryError(f"{column}: there is no such column; give one of docs/columns.md, or a tag as tags.NAME")
    return f'"{column}"'


def value_of(row: dict[str, Any], column: str) -> str | None:
    """What ``expression`` gives for a row, as text."""
    value = row["tags"].get(column.removeprefix("tags.")) if column.startswith("tags.") else row[column]
    return None if value is None else str(value)


def select(
    run: RunDir, selection: Selection, *, skip: Callable[[dict[str, Any]], bool] = lambda row: False
) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Rows of ``metadata`` (tags as a dict) with the encoded bytes of their images, but for those to ``skip``, which are not read.

    Raises QueryError for a wrong condition; RunFolderError if an image is missing or damaged, or the verdicts change meanwhile.
    """
    before = read_judged(run.store)
    for first, last in _ranges(run.markers()):
        sql = f"select * from metadata where shard_id between {first} and {last} and {selection.sql} order by shard_id"  # noqa: S608
        table = query([run.store.root], sql)
        for shard_id, rows in groupby(_rows(table), key=lambda row: row["shard_id"]):
            if wanted := {row["sample_id"]: row for row in rows if not skip(row)}:
                yield from _with_images(run, shard_id, wanted)
    if read_judged(run.store) != before:
        raise RunFolderError(f"{run.store.root}: was judged anew meanwhile; run the same command again")


def _ranges(markers: Sequence[Marker]) -> Iterator[tuple[int, int]]:
    """First and last shard of stretches of up to ``ROWS_AT_A_TIME`` rows."""
    first, rows = None, 0
    last = -1
    for marker in markers:
        if first is not None and rows + marker.draws > ROWS_AT_A_TIME:
            yield first, last
            first, rows = None, 0
        first = marker.shard_id if first is None else first
        last, rows = marker.shard_id, rows + marker.draws
    if first is not None:
        yield first, last


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=1024):
        for row in batch.to_pylist():
            yield row | {"tags": dict(row["tags"])}


def _with_images(run: RunDir, shard_id: int, rows: dict[str, dict[str, Any]]) -> Iterator[tuple[dict[str, Any], bytes]]:
    """In the order of the image table."""
    name = layout.images_file(shard_id)
    for sample_id, data in _images(run, name):
        row = rows.pop(sample_id, None)
        if row is None:
            continue
        if hashlib.sha256(data).hexdigest() != row["image_sha256"]:
            raise damaged(run, name, f"image {sample_id} is not the one that was made: its sha256 differs")
        yield row, data
    if rows:
        raise damaged(run, name, f"image {next(iter(rows))} is missing")


def image_table(run: RunDir, name: str) -> ds.Dataset:
    """The image table of a shard, of which only what is asked for is read. Raises OSError."""
    root = run.store.root
    return open_objects(root).dataset([name], images_schema()) if is_url(root) else ds.dataset(f"{root}/{name}", format="parquet")


def _images(run: RunDir, name: str) -> Iterator[tuple[str, bytes]]:
    try:
        table = image_table(run, name)
        batches = table.to_batches(columns=["sample_id", "image"], batch_size=IMAGES_AT_A_TIME, batch_readahead=1, fragment_readahead=1)
        for batch in batches:
            for row in batch.to_pylist():
                yield row["sample_id"], row["image"]["bytes"]
    except (OSError, pa.ArrowException) as error:
        raise damaged(run, name, error) from None
