"""One committed shard against its marker, its plan and itself. The first thing that is wrong with a file is told;
what follows from it is not."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.run_dir import RunDir
from jobs.verify_rows import AGAIN, Problem, image_problem
from pipeline.plan import draws_digest
from schemas import layout
from schemas.errors import RunFolderError
from schemas.records import Draw, Marker, Status
from schemas.tables import SCHEMA_VERSION, draw_from_row, images_schema, metadata_schema

Each = Callable[[Callable[..., str | None], Iterable[Any], Iterable[Any]], Iterable[str | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFindings:
    """What a shard holds, and what is wrong with it."""

    problems: tuple[Problem, ...]
    sample_ids: tuple[str, ...] = ()
    draws: int = 0
    images: int = 0


class _Wrong(Exception):
    """The first thing that is wrong with a file; nothing further can be said of the shard."""


def check_shard(run_dir: RunDir, marker: Marker, *, each: Each = map) -> ShardFindings:
    """All that can be said of a shard. ``each`` maps over its images, in threads if it likes."""
    again = AGAIN.format(marker=layout.done_file(marker.shard_id))
    name = layout.plan_file(marker.shard_id)
    try:
        draws = _planned(run_dir, marker)
        name = layout.metadata_file(marker.shard_id)
        metadata = _table(run_dir, name, marker.metadata_sha256, metadata_schema(run_dir.job.scorers))
        rows = metadata.to_pylist()
        _check_metadata(rows, draws, marker)
        name = layout.failed_file(marker.shard_id)
        _check_dead_letters(run_dir, name, rows)
        name = layout.images_file(marker.shard_id)
        images = _table(run_dir, name, marker.images_sha256, images_schema()).to_pylist()
        _check_images(images, [row for row in rows if row["status"] != Status.FAILED], each)
    except RunFolderError as error:
        what, _, remedy = str(error).removeprefix(f"{run_dir.store.root}/{name}: ").partition("; ")
        return ShardFindings(problems=(Problem(file=name, what=what, remedy=remedy or again),))
    except _Wrong as wrong:
        remedy = "delete plan/plan.json and run the same command again" if name.startswith(layout.PLAN) else again
        return ShardFindings(problems=(Problem(file=name, what=str(wrong), remedy=remedy),))
    return ShardFindings(problems=(), sample_ids=tuple(draw.sample_id for draw in draws), draws=len(draws), images=len(images))


def _planned(run_dir: RunDir, marker: Marker) -> tuple[Draw, ...]:
    draws = run_dir.read_shard(marker.shard_id).draws
    if draws_digest(draws) != marker.draws_sha256:
        raise _Wrong(f"the draws of shard {marker.shard_id} are {draws_digest(draws)}, its index has {marker.draws_sha256}")
    return draws


def _table(run_dir: RunDir, name: str, sha256: str, schema: pa.Schema) -> pa.Table:
    """A file that is byte for byte what was committed, and has the run's schema."""
    try:
        data = run_dir.store.get(name)
    except FileNotFoundError:
        raise _Wrong("is missing") from None
    except OSError as error:
        raise _Wrong(f"cannot be read: {error.strerror}") from None
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise _Wrong(f"its {len(data):,} bytes have sha256 {found[:16]}…, committed was {sha256[:16]}…")
    try:
        table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise _Wrong(f"is not readable Parquet: {str(error).splitlines()[0]}") from None
    _check_schema(table.schema, schema)
    return table


def _check_schema(found: pa.Schema, schema: pa.Schema) -> None:
    version = (found.metadata or {}).get(b"promptmill_schema", b"none").decode()
    if version != SCHEMA_VERSION:
        raise _Wrong(f"has schema version {version}, this promptmill reads {SCHEMA_VERSION}")
    if found.equals(schema):
        return
    for field in schema:
        if field.name not in found.names:
            raise _Wrong(f"column {field.name} is missing")
        if not found.field(field.name).equals(field):
            raise _Wrong(f"column {field.name} is {found.field(field.name).type}, should be {field.type}")
    extra = [name for name in found.names if name not in schema.names]
    raise _Wrong(f"has a further column {extra[0]}" if extra else "its columns are in another order")


def _check_metadata(rows: Sequence[dict[str, Any]], draws: Sequence[Draw], marker: Marker) -> None:
    if not len(rows) == len(draws) == marker.draws:
        raise _Wrong(f"has {len(rows)} rows, the plan {len(draws)} draws, the marker {marker.draws}")
    for at, (row, draw) in enumerate(zip(rows, draws, strict=True)):
        if row["sample_id"] != draw.sample_id:
            raise _Wrong(f"row {at} is {row['sample_id']}, the plan has {draw.sample_id} there")
        if row["shard_id"] != marker.shard_id or draw_from_row(row) != draw:
            raise _Wrong(f"row {at} ({draw.sample_id}) differs from its draw in the plan")
        if (row["status"] == Status.FAILED) != (row["image_sha256"] is None):
            raise _Wrong(f"row {at} ({draw.sample_id}) is {row['status']} and has {'no' if row['image_sha256'] is None else 'an'} image")
    found = Counter(row["status"] for row in rows)
    for status in Status:
        if found[status.value] != getattr(marker, status.value):
            raise _Wrong(f"has {found[status.value]} {status.value} rows, the marker says {getattr(marker, status.value)}")


def _check_dead_letters(run_dir: RunDir, name: str, rows: Sequence[dict[str, Any]]) -> None:
    wanted = [row["sample_id"] for row in rows if row["status"] == Status.FAILED]
    try:
        found = [letter["sample_id"] for letter in json.loads(run_dir.store.get(name))]
    except FileNotFoundError:
        found = []
    except (ValueError, TypeError, KeyError):
        raise _Wrong("is no list of dead letters") from None
    if len(found) != len(wanted):
        raise _Wrong(f"holds {len(found)} dead letters, the metadata {len(wanted)} failed draws")
    if found != wanted:
        raise _Wrong("names other draws than those that failed")


def _check_images(images: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]], each: Each) -> None:
    if len(images) != len(rows):
        raise _Wrong(f"has {len(images)} images, the metadata {len(rows)}")
    for at, (image, row) in enumerate(zip(images, rows, strict=True)):
        if image["sample_id"] != row["sample_id"]:
            raise _Wrong(f"row {at} is {image['sample_id']}, the metadata has {row['sample_id']} there")
    for problem in _found(each(image_problem, images, rows)):
        raise _Wrong(problem)


def _found(problems: Iterable[str | None]) -> Iterator[str]:
    """The first problem, with the number of all."""
    found = [problem for problem in problems if problem]
    if found:
        yield found[0] if len(found) == 1 else f"{found[0]}; and {len(found) - 1} more images of the shard"
