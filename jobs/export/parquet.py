"""Parquet with images and metadata in one table: plain, or with the features that `datasets` decodes."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.export.base import Item, Outline

ROWS_PER_GROUP = 64
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def plain(outline: Outline) -> "Tables":
    """``image`` holds the encoded bytes; everything else is as in ``metadata``, tags as columns ``tags.NAME``."""
    return Tables(outline, pa.schema([pa.field("image", pa.binary(), nullable=False), *outline.schema]))


def hf(outline: Outline) -> "Tables":
    """``image`` is an Image feature, ``label`` a ClassLabel: ``load_dataset(folder)`` gives pictures and class numbers."""
    fields = [pa.field("image", _IMAGE), *outline.schema]
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    features |= {field.name: _feature(field.type) for field in outline.schema}
    if outline.classes:
        fields = [pa.field("label", pa.int64()) if field.name == "label" else field for field in fields]
        features["label"] = {"names": list(outline.classes), "_type": "ClassLabel"}
    return Tables(outline, pa.schema(fields, {"huggingface": json.dumps({"info": {"features": features}})}))


class Tables:
    """``data/train-00000-of-00003.parquet`` and so on. Images are neither compressed nor dictionary-encoded: they are already small."""

    def __init__(self, outline: Outline, schema: pa.Schema) -> None:
        self._outline, self._schema = outline, schema
        self._numbers = {label: number for number, label in enumerate(outline.classes)}
        self._as_struct = pa.types.is_struct(schema.field("image").type)
        self._as_number = pa.types.is_integer(schema.field("label").type)
        self._rows: dict[str, list[dict[str, Any]]] = {split: [] for split in outline.splits}
        self._files = {split: [self._path(split, number) for number in range(outline.start[split].parts)] for split in outline.splits}
        self._open: dict[str, pq.ParquetWriter] = {}
        self._bytes = dict.fromkeys(outline.splits, 0)
        (outline.folder / "data").mkdir(exist_ok=True)

    def add(self, item: Item) -> Sequence[Path]:
        label = self._numbers.get(item.label) if self._as_number and item.label is not None else item.label
        image = {"bytes": item.data, "path": item.name} if self._as_struct else item.data
        self._rows[item.split].append({**item.row, "label": label, "image": image})
        self._bytes[item.split] += len(item.data)
        full = self._bytes[item.split] >= self._outline.shard_bytes
        if full or len(self._rows[item.split]) == ROWS_PER_GROUP:
            self._flush(item.split)
        if not full:
            return ()
        self._open.pop(item.split).close()
        self._bytes[item.split] = 0
        return (self._files[item.split][-1],)

    def close(self) -> None:
        for split, files in self._files.items():
            if self._rows[split] or not files:
                self._flush(split)
            if split in self._open:
                self._open.pop(split).close()
            for number, path in enumerate(files):
                os.rename(path, path.with_name(f"{split}-{number:05d}-of-{len(files):05d}.parquet"))

    def _flush(self, split: str) -> None:
        if split not in self._open:
            path = self._path(split, len(self._files[split]))
            self._files[split].append(path)
            self._open[split] = pq.ParquetWriter(path, self._schema, write_page_checksum=True, **self._encoding())
        self._open[split].write_table(pa.Table.from_pylist(self._rows[split], self._schema).combine_chunks(), row_group_size=ROWS_PER_GROUP)
        self._rows[split] = []

    def _path(self, split: str, number: int) -> Path:
        return self._outline.folder / "data" / f"{split}-{number:05d}.parquet"

    def _encoding(self) -> dict[str, Any]:
        """Only flat columns can be named; the others stay as they are."""
        flat = [field.name for field in self._schema if not pa.types.is_nested(field.type) and field.name != "image"]
        return {"compression": dict.fromkeys(flat, "zstd"), "use_dictionary": flat}


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    return {"dtype": {"double": "float64", "float": "float32"}.get(str(kind), str(kind)), "_type": "Value"}
