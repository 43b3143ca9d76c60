"""``promptmill filter``: judge a run again from its stored scores. No model, no images.

The verdicts of a run are a function of its metadata and of the rules given here; what was judged before plays no part.
Without rules the run's own hold again.
"""

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from jobs.added_scores import added_columns
from jobs.embeddings import read_features
from jobs.judged import Judged, added_scorers, read_judged
from jobs.lease import Lease, hold
from jobs.run_dir import RunDir, damaged
from pipeline.filter import PASSED, Judgement, Rows, judge_rows
from pipeline.write import parquet_bytes
from schemas import layout
from schemas.config import FilterConfig
from schemas.config_load import load_filter
from schemas.errors import ConfigError, RunFolderError
from schemas.records import Marker
from schemas.tables import metadata_schema

READERS = 8
SHARDS_PER_TABLE = 1000
NEEDED = ("prompt_id", "status", "reason", "is_blank", "safety_flagged")

Counts = dict[tuple[str, str | None], int]
pc: Any = pyarrow.compute  # its functions are made at import, where type checkers do not see them


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Draws by (status, reason), before and after."""

    root: str
    shards: int
    before: Counts
    after: Counts


def filter_run(
    path: str | Path, overrides: Sequence[str] = (), *, dry_run: bool = False, on_message: Callable[[str], None] = lambda text: None
) -> Change:
    """Judge the committed shards of a run by the rules of its job with ``overrides``; with ``dry_run`` only count.

    Raises UserError; the run is then as it was.
    """
    run = RunDir.open(path)
    rules = load_filter(run.job.config, overrides, scorers=[*run.job.scorers, *added_scorers(run.store)])
    if dry_run:
        return _judge(run, rules, lease=None)
    with hold(run.store, threading.Event(), on_message) as lease:
        return _judge(run, rules, lease=lease)


def judge_again(run: RunDir, lease: Lease | None = None) -> bool:
    """Judge shards that were made since ``promptmill filter``, by its rules; whether there were any. The run is held."""
    judged = read_judged(run.store)
    markers = run.markers()
    if judged is None or (all(map(judged.covers, markers)) and len(markers) == len(judged.shards)):
        return False
    publish(run, markers, FilterConfig.model_validate(judged.filter), added=judged.scorers, lease=lease)
    return True


def _judge(run: RunDir, rules: FilterConfig, *, lease: Lease | None) -> Change:
    markers = run.markers()
    if not markers:
        raise RunFolderError(f"{run.store.root}: has no committed shard yet; nothing can be judged")
    before, added = count(run), added_scorers(run.store)
    if lease is None:
        rows = read_rows(run, markers, rules, added)
        after = _counts(rows, judge(rows, rules, [*run.job.scorers, *added], embedding=_embedding(run, markers, rows, rules)))
    elif rules == run.job.config.filter and not added and len(markers) <= SHARDS_PER_TABLE:  # a larger run gains by larger tables
        run.store.delete(layout.JUDGED_INDEX)
        _remove_tables(run, keep=())
        run.log("judged", filter=None)
        after = count(run)
    else:
        after = publish(run, markers, rules, added=added, lease=lease)
    return Change(root=run.store.root, shards=len(markers), before=before, after=after)


def publish(run: RunDir, markers: Sequence[Marker], rules: FilterConfig, *, added: Mapping[str, str], lease: Lease | None) -> Counts:
    """Write the metadata table with the verdicts of other rules and with added scores, then the index that makes it count."""
    rows = read_rows(run, markers, rules, added)
    found = judge(rows, rules, [*run.job.scorers, *added], embedding=_embedding(run, markers, rows, rules))
    counts = _counts(rows, found)
    accepted = int(found.accepted.sum())
    rejected = sum(number for (status, _), number in counts.items() if status == "rejected")
    _write(run, markers, judged_tables(run, markers, found, added), rules, added, accepted, rejected, lease)
    return counts


def gather(run: RunDir, lease: Lease | None = None) -> bool:
    """Write the metadata of a run of more than ``SHARDS_PER_TABLE`` shards, with its own verdicts, in larger tables, which queries read
    many times faster; whether that was of use. What ``promptmill filter`` with other rules has judged stays. The run is held.
    """
    markers, rules, judged = run.markers(), run.job.config.filter, read_judged(run.store)
    if len(markers) <= SHARDS_PER_TABLE or (judged and (FilterConfig.model_validate(judged.filter) != rules or judged.scorers)):
        return False
    if judged and all(map(judged.covers, markers)) and len(markers) == len(judged.shards):
        return False
    accepted, rejected = sum(marker.accepted for marker in markers), sum(marker.rejected for marker in markers)
    parts = (markers[first : first + SHARDS_PER_TABLE] for first in range(0, len(markers), SHARDS_PER_TABLE))
    tables = (pa.concat_tables(_read(run, part, None, {})).combine_chunks() for part in parts)
    _write(run, markers, tables, rules, {}, accepted, rejected, lease)
    return True


def _write(
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
    _remove_tables(run, keep=tables)
    run.log("judged", filter=dumped, accepted=accepted, rejected=rejected)


def judged_tables(run: RunDir, markers: Sequence[Marker], found: Judgement, added: Mapping[str, str]) -> Iterator[pa.Table]:
    """The metadata table with these verdicts, in parts."""
    start = 0
    for first in range(0, len(markers), SHARDS_PER_TABLE):
        table = pa.concat_tables(_read(run, markers[first : first + SHARDS_PER_TABLE], None, added)).combine_chunks()
        yield _with_verdicts(table, found, slice(start, start + table.num_rows))
        start += table.num_rows


def read_rows(run: RunDir, markers: Sequence[Marker], rules: FilterConfig, added: Mapping[str, str]) -> pa.Table:
    """The columns that the rules need, of all rows in the plan's order. Raises ConfigError, RunFolderError."""
    scorers = [*run.job.scorers, *added]
    schema = metadata_schema(scorers)
    wanted = {*NEEDED, *(f"{name}_score" for name in scorers)}
    for rule in rules.rules:
        wanted |= {"phash"} if rule.phash_distance is not None else set()
        wanted |= {"sample_id"} if (rule.keep is not None and rule.score is None) or rule.embedding_cosine is not None else set()
        wanted |= {_column(rule.within, schema)} if rule.within not in ("run", "prompt") else set()
        words = {word.lower() for word in re.findall(r"\w+", rule.where or "")}
        wanted |= {name for name in schema.names if name in words}
    return pa.concat_tables(_read(run, markers, [name for name in schema.names if name in wanted], added)).combine_chunks()


def judge(table: pa.Table, rules: FilterConfig, scorers: Sequence[str], *, embedding: np.ndarray | None = None) -> Judgement:
    """Judge all rows of a run together. Raises QueryError for a condition that is wrong."""
    made = pc.not_equal(table["status"], "failed").to_numpy()
    wheres = {rule.where for rule in rules.rules if rule.where is not None}
    return judge_rows(
        Rows(
            made=made,
            is_blank=table["is_blank"].to_numpy(),
            safety_flagged=pc.fill_null(table["safety_flagged"], False).to_numpy(),
            scores={name: pc.fill_null(table[f"{name}_score"], float("nan")).to_numpy() for name in scorers},
            groups={"prompt": _numbers(table["prompt_id"])}
            | {rule.within: _numbers(_group(table, rule.within)) for rule in rules.rules if rule.within not in ("run", "prompt")},
            conditions={where: _holds(table, where) for where in sorted(wheres)},
            embedding=embedding,
            phash=_uint64(table["phash"]) if "phash" in table.column_names else None,
            lot=_uint64(table["sample_id"]) if "sample_id" in table.column_names else None,
        ),
        rules,
        scorers=scorers,
    )


def _embedding(run: RunDir, markers: Sequence[Marker], rows: pa.Table, rules: FilterConfig) -> np.ndarray | None:
    """Features of all rows, if a rule needs them."""
    if all(rule.embedding_cosine is None for rule in rules.rules):
        return None
    found = read_features(run, markers, rows["sample_id"].to_pylist())
    if found is None:
        raise ConfigError(f"filter: embedding_cosine needs the features of the images; run 'promptmill embed {run.store.root}' first")
    return found


def count(run: RunDir) -> Counts:
    """Draws by the status and reason that readers see now."""
    from jobs.query import query

    rows = query([run.store.root], "select status, reason, count(*)::bigint as n from metadata group by all").to_pylist()
    return {(row["status"], row["reason"]): row["n"] for row in rows}


def _holds(table: pa.Table, condition: str) -> np.ndarray:
    """NaN is null there: DuckDB takes it for larger than any number."""
    from jobs.expression import holds

    for at, column in enumerate(table.schema):
        if pa.types.is_floating(column.type):
            table = table.set_column(at, column, pc.if_else(pc.is_nan(table[column.name]), None, table[column.name]))
    return holds(table, condition)


def _counts(table: pa.Table, found: Judgement) -> Counts:
    made = pc.not_equal(table["status"], "failed").to_numpy()
    counts: Counter[tuple[str, str | None]] = Counter()
    for value in pc.value_counts(table["reason"].filter(pa.array(~made))).to_pylist():
        counts["failed", value["values"]] = value["counts"]
    for number, times in zip(*np.unique(found.reason[made], return_counts=True), strict=True):
        counts[("accepted", None) if number == PASSED else ("rejected", found.reasons[number])] = int(times)
    return dict(counts)


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


def _read(run: RunDir, markers: Sequence[Marker], columns: list[str] | None, added: Mapping[str, str]) -> list[pa.Table]:
    """Tables of the shards; of all columns or of these, with those of added scorers."""
    schema = metadata_schema([*run.job.scorers, *added])
    names = columns or schema.names
    own = [name for name in names if name in metadata_schema(run.job.scorers).names]

    def one(marker: Marker) -> pa.Table:
        name = layout.metadata_file(marker.shard_id)
        try:
            data = run.store.get(name)
            if hashlib.sha256(data).hexdigest() != marker.metadata_sha256:
                raise OSError("its bytes are not those that were committed")
            table = pq.read_table(pa.BufferReader(data), columns=[*{*own, "sample_id"}] if added else own, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise damaged(run, name, error) from None
        for scorer, version in added.items():
            for column, values in added_columns(run.store, marker, scorer, version, table["sample_id"].to_pylist()).items():
                table = table.append_column(column, pa.array(values, schema.field(column).type))
        return table.select(names).cast(pa.schema([schema.field(name) for name in names], schema.metadata))

    with ThreadPoolExecutor(READERS, thread_name_prefix="metadata") as pool:
        return list(pool.map(one, markers))


def _column(within: str, schema: pa.Schema) -> str:
    """Column that a group is made of."""
    column = "tags" if within.startswith("tags.") else within
    if column not in schema.names or within == "tags" or pa.types.is_list(schema.field(column).type):
        raise ConfigError(f"filter: within {within!r} is not known; write run, prompt, a column such as label, or a tag such as tags.shape")
    return column


def _group(table: pa.Table, within: str) -> pa.ChunkedArray:
    if within.startswith("tags."):
        return pc.map_lookup(table["tags"], pa.scalar(within.removeprefix("tags.")), "first")
    return pc.cast(table[within], pa.string())


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """A number for each distinct value; null is one of them."""
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    return encoded.indices.to_numpy().astype(np.int32)


def _uint64(column: pa.ChunkedArray) -> np.ndarray:
    """The first 16 hexadecimal digits as a number; 0 for null."""
    return np.array([int(text[:16], 16) if text else 0 for text in column.to_pylist()], dtype=np.uint64)


def _remove_tables(run: RunDir, keep: Sequence[str] | dict[str, str]) -> None:
    for name in run.store.list(layout.JUDGED):
        if name not in keep and name != layout.JUDGED_INDEX:
            run.store.delete(name)
