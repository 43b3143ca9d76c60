"""The metadata table of a run, written anew into ``judged/``: with other verdicts, with added scores, or only in larger files."""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from jobs.added_scores import added_columns
from jobs.judged import Judged, read_judged
from jobs.lease import Lease
from jobs.run_dir import RunDir, damaged
from pipeline.filter import Judgement
from pipeline.write import parquet_bytes
from schemas import layout
from schemas.config import FilterConfig
from schemas.records import Marker
from schemas.tables import metadata_schema

READERS = 8
SHARDS_PER_TABLE = 1000

pc: Any = pyarrow.compute  # its functions are made at import, where type checkers do not see them


def gains(shards: int) -> bool:
    """Whether a run is read much faster from larger tables than from those of its shards."""
    return shards > SHARDS_PER_TABLE


def gather(run: RunDir, lease: Lease | None = None) -> bool:
    """Write the metadata of a run that ``gains`` by it in larger tables, with its own verdicts; whether that was of use.

    What ``promptmill filter`` with other rules has judged stays. The run is held.
    """
    rules, judged = run.job.config.filter, read_judged(run.store)
    if judged and (FilterConfig.model_validate(judged.filter) != rules or judged.scorers):
        return False
    if not gains(len(run.store.list(layout.DONE))):
        return False
    markers = run.markers()
    if judged and all(map(judged.covers, markers)) and len(markers) == len(judged.shards):
        return False
    accepted, rejected = sum(marker.accepted for marker in markers), sum(marker.rejected for marker in markers)
    parts = (markers[first : first + SHARDS_PER_TABLE] for first in range(0, len(markers), SHARDS_PER_TABLE))
    tables = (pa.concat_tables(read_shards(run, part, None, {})).combine_chunks() for part in parts)
    write_tables(run, markers, tables, rules, {}, accepted, rejected, lease)
    return True


def write_tables(
    run: RunDir,
    markers: Sequence[Marker],
    parts: Iterable[pa.Table],
    rules: FilterConfig,
    added: Mapping[str, str],
    accepted: int,
    rejected: int,
    lease: Lease | None,
) -> None:
    """The tables, one by one, then the index that makes them count."""
    dumped = rules.model_dump(mode="json", exclude_none=True)
    shards = {str(marker.shard_id): marker.metadata_sha256 for marker in markers}
    judged_id = hashlib.sha256(json.dumps([dumped, shards, dict(added)], sort_keys=True).encode()).hexdigest()[:16]
    tables: dict[str, str] = {}
    for number, table in enumerate(parts):
        data = parquet_bytes(table, compression="zstd", row_group_size=100_000)
        name = layout.judged_file(judged_id, number)
        run.store.put(name, data)
        tables[name] = hashlib.sha256(data).hexdigest()
    if lease is not None:
        lease.check()
    judged = Judged(id=judged_id, filter=dumped, shards=shards, tables=tables, accepted=accepted, rejected=rejected, scorers=dict(added))
    run.store.put(layout.JUDGED_INDEX, judged.to_bytes())
    remove_tables(run, keep=tables)
    run.log("judged", filter=dumped, accepted=accepted, rejected=rejected)


def judged_tables(run: RunDir, markers: Sequence[Marker], found: Judgement, added: Mapping[str, str]) -> Iterator[pa.Table]:
    """The metadata table with these verdicts, in parts."""
    start = 0
    for first in range(0, len(markers), SHARDS_PER_TABLE):
        table = pa.concat_tables(read_shards(run, markers[first : first + SHARDS_PER_TABLE], None, added)).combine_chunks()
        yield _with_verdicts(table, found, slice(start, start + table.num_rows))
        start += table.num_rows


def read_shards(run: RunDir, markers: Sequence[Marker], columns: list[str] | None, added: Mapping[str, str]) -> list[pa.Table]:
    """Tables of the shards; of all columns or of these, with those of added scorers.

    Columns that a run of an older version lacks are null. Raises RunFolderError.
    """
    schema = metadata_schema([*run.job.scorers, *added])
    names = columns or schema.names
    own = [name for name in names if name in metadata_schema(run.job.scorers).names]

    def one(marker: Marker) -> pa.Table:
        name = layout.metadata_file(marker.shard_id)
        try:
            data = run.store.get(name)
            if hashlib.sha256(data).hexdigest() != marker.metadata_sha256:
                raise OSError("its bytes are not those that were committed")
            table = pq.ParquetFile(pa.BufferReader(data)).read(columns=[*{*own, "sample_id"}] if added else own, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise damaged(run, name, error) from None
        for column in {*own} - {*table.column_names}:
            table = table.append_column(column, pa.nulls(table.num_rows, schema.field(column).type))
        for scorer, version in added.items():
            for column, values in added_columns(run.store, marker, scorer, version, table["sample_id"].to_pylist()).items():
                table = table.append_column(column, pa.array(values, schema.field(column).type))
        return table.select(names).cast(pa.schema([schema.field(name) for name in names], schema.metadata))

    with ThreadPoolExecutor(READERS, thread_name_prefix="metadata") as pool:
        return list(pool.map(one, markers))


def _with_verdicts(table: pa.Table, found: Judgement, rows: slice) -> pa.Table:
    made = pc.not_equal(table["status"], "failed").to_numpy()
    reason, rank = found.reason[rows], found.rank[rows]
    why = pa.array([found.reasons[number] if number >= 0 else None for number in reason], pa.string())
    status = pa.array(np.where(found.accepted[rows], "accepted", "rejected"), pa.string())
    ranked = pa.array(rank > 0)
    columns = {
        "status": pc.if_else(pa.array(made), status, table["status"].combine_chunks()),
        "reason": pc.if_else(pa.array(made), why, table["reason"].combine_chunks()),
        "rank_in_prompt": pc.if_else(ranked, pa.array(rank), pa.scalar(None, pa.int32())),
        "is_best": pc.if_else(ranked, pa.array(rank == 1), pa.scalar(None, pa.bool_())),
    }
    for name, column in columns.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), column)
    return table


def remove_tables(run: RunDir, keep: Collection[str]) -> None:
    """Delete all but these files."""
    for name in run.store.list(layout.JUDGED):
        if name not in keep and name != layout.JUDGED_INDEX:
            run.store.delete(name)
