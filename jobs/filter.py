"""``promptmill filter``: judge a run again from its stored scores. No model, no images.

The verdicts of a run are a function of its metadata and of the rules given here; what was judged before plays no part.
Without rules the run's own hold again.
"""

import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from jobs.embeddings import read_features
from jobs.judged import added_scorers, read_judged
from jobs.judged_tables import gains, judged_tables, read_shards, remove_tables, write_tables
from jobs.lease import Lease, hold
from jobs.run_dir import RunDir
from pipeline.filter import PASSED, Judgement, Rows, judge_rows
from schemas import layout
from schemas.config import FilterConfig
from schemas.config_load import load_filter
from schemas.errors import ConfigError, RunFolderError
from schemas.records import Marker
from schemas.tables import metadata_schema

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
    if judged is None:
        return False
    markers = run.markers()
    if all(map(judged.covers, markers)) and len(markers) == len(judged.shards):
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
    elif rules == run.job.config.filter and not added and not gains(len(markers)):
        run.store.delete(layout.JUDGED_INDEX)
        remove_tables(run, keep=())
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
    write_tables(run, markers, judged_tables(run, markers, found, added), rules, added, accepted, rejected, lease)
    return counts


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
    return pa.concat_tables(read_shards(run, markers, [name for name in schema.names if name in wanted], added)).combine_chunks()


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
