"""``promptmill export``: a run as a dataset for training, in a format that other tools read.

Images are copied as they were encoded, each checked against its sha256. Everything is written to a hidden folder next to
the target, which gets its name when all is there: a target is whole or not there at all; after a kill the same command goes on. Text of
prompts and labels never becomes a path as it stands.
"""

import contextlib
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.export import parquet
from jobs.export.base import Format, Item, Outline
from jobs.export.card import Contents, card
from jobs.export.coco import CocoCaptions
from jobs.export.credentials import Credentials
from jobs.export.imagefolder import ImageFolder
from jobs.export.parts import Parts
from jobs.export.place import new_folder
from jobs.export.provenance import embed
from jobs.export.splits import Splits
from jobs.export.webdataset import WebDataset
from jobs.judged import added_scorers, read_judged
from jobs.query import query
from jobs.run_dir import RunDir
from jobs.selection import Selection, expression, select, value_of
from schemas.errors import QueryError
from schemas.tables import SCHEMA_VERSION, metadata_schema

FORMATS: dict[str, Format] = {
    "imagefolder": ImageFolder,
    "webdataset": WebDataset,
    "hf": parquet.hf,
    "parquet": parquet.plain,
    "coco": CocoCaptions,
}
SHARD_BYTES = 500_000_000
EXAMPLES = 10
MOST_CLASSES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written: images by split, their labels, their bytes."""

    target: Path
    splits: dict[str, int]
    classes: int
    num_bytes: int


def export(
    path: str | Path,
    target: str | Path,
    *,
    form: str,
    where: str = "true",
    only: str = "accepted",
    split: str = "train=1",
    split_by: str = "prompt",
    label: str = "label",
    shard_bytes: int = SHARD_BYTES,
    license_id: str = "unknown",
    provenance: bool = False,
    c2pa: tuple[Path, Path] | None = None,
    on_message: Callable[[str], None] = lambda text: None,
    on_count: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Exported:
    """Write the images of a run that satisfy an SQL condition to the new folder ``target``; see ``FORMATS``.

    ``only`` is accepted, rejected or all. ``split`` has names and shares; images with equal ``split_by``, a column or tag, are in one
    split. ``label`` is the column or tag that makes the classes. With ``provenance`` each image file says how it was made, with
    ``c2pa``, the files of a certificate and its key, signed. ``on_count(what, done, total)`` is told the progress.
    Raises UserError, and has then written nothing.
    """
    run, splits, selection = RunDir.open(path), Splits.parse(split), Selection(where=where, only=only)
    credentials = Credentials(*c2pa, version=run.job.versions["promptmill"]) if c2pa else None
    expression(run, split_by)
    classes = _distinct(run, selection, expression(run, label))
    tags = _distinct(run, selection, "unnest(map_keys(tags))")
    if len(classes) > MOST_CLASSES:
        raise QueryError(f"--label {label}: has {len(classes):,} values, more than {MOST_CLASSES:,}; choose a column that makes classes")
    schema = _schema([*run.job.scorers, *added_scorers(run.store)], tags)
    [total] = query([run.store.root], f"select count(*) as n from metadata where {selection.sql}")["n"].to_pylist()  # noqa: S608
    options = {"form": form, "split": split, "split_by": split_by, "label": label, "shard_bytes": shard_bytes, "provenance": provenance}
    identity = _identity(run, options | asdict(selection) | {"c2pa": credentials and credentials.sha256})

    def split_of(row: dict[str, Any]) -> str:
        return splits.of(value_of(row, split_by))

    with new_folder(target) as folder:
        parts = Parts(folder, identity, splits.names)
        start = {name: parts.start(name) for name in splits.names}
        writer = FORMATS[form](
            Outline(folder=folder, splits=splits.names, start=start, classes=classes, schema=schema, shard_bytes=shard_bytes)
        )
        counts: Counter[tuple[str | None, str]] = Counter()
        for part in parts.finished:
            counts.update({(of, part.split): count for of, count in part.labels})
        examples, num_bytes = dict.fromkeys(parts.examples), sum(part.num_bytes for part in parts.finished)
        done = counts.total()
        if done:
            on_message(f"{len(parts.finished):,} finished parts are there, with {done:,} of {total:,} images; going on")
        with contextlib.closing(writer):
            for row, data in select(run, selection, skip=lambda row: parts.has(split_of(row), row["shard_id"], row["sample_id"])):
                if provenance or credentials:
                    data = embed(data, row, version=run.job.versions["promptmill"])
                if credentials:
                    data = credentials.sign(data, row)
                item = _item(row, data, split_of(row), value_of(row, label), tags)
                if len(examples) < EXAMPLES:
                    examples[row["prompt"]] = None
                parts.add(item, writer.add(item), examples)
                counts[item.label, item.split] += 1
                num_bytes += len(data)
                done += 1
                on_count("images", done, total)
        if not counts:
            raise QueryError(f"{path}: no {'' if only == 'all' else only + ' '}image satisfies {where!r}; 'promptmill status' counts them")
        by_split = {name: sum(count for (_, at), count in counts.items() if at == name) for name in splits.names}
        contents = Contents(
            form=form,
            selection=selection,
            split=split,
            split_by=split_by,
            label=label,
            splits=by_split,
            labels=counts,
            examples=tuple(examples),
            provenance=provenance or credentials is not None,
            signer=credentials.signer if credentials else None,
        )
        (folder / "README.md").write_text(card(run, contents, license_id), encoding="utf-8", newline="\n")
    return Exported(target=Path(target), splits=by_split, classes=len(classes), num_bytes=num_bytes)


def _identity(run: RunDir, options: dict[str, Any]) -> str:
    """A digest of all that decides the images of an export, their order and their files."""
    judged = read_judged(run.store)
    shards = [(marker.shard_id, marker.metadata_sha256, marker.images_sha256) for marker in run.markers()]
    versions = {"pyarrow": pa.__version__, "schema": SCHEMA_VERSION, "promptmill": version("promptmill")}
    decisive = [options, versions, run.job.fingerprint, shards, judged and asdict(judged)]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _distinct(run: RunDir, selection: Selection, value: str) -> list[str]:
    sql = f"select distinct v from (select {value} as v from metadata where {selection.sql}) where v is not null"  # noqa: S608
    return sorted(str(one) for one in query([run.store.root], sql)["v"].to_pylist())


def _schema(scorers: list[str], tags: list[str]) -> pa.Schema:
    """The metadata's columns, tags last; a label is text here."""
    fields = [field.remove_metadata().with_nullable(True) for field in metadata_schema(scorers) if field.name != "tags"]
    return pa.schema(
        [
            pa.field("label", pa.string()) if field.name == "label" else field
            for field in [*fields, *(pa.field(f"tags.{tag}", pa.string()) for tag in tags)]
        ]
    )


def _item(row: dict[str, Any], data: bytes, split: str, label: str | None, tags: list[str]) -> Item:
    flat = {name: _finite(value) for name, value in row.items() if name != "tags"}
    flat |= {"label": label} | {f"tags.{tag}": row["tags"].get(tag) for tag in tags}
    return Item(split=split, name=f"{row['sample_id']}.{row['format']}", data=data, label=label, row=flat)


def _finite(value: object) -> object:
    """NaN, which JSON does not have, as null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
