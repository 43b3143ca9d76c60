"""The result of a query to text: table, json, ndjson, csv, parquet. Streams, except for the table.

Bytes never reach a terminal: a table shows ``<12,345 bytes>``, JSON and CSV hold base64. NaN and infinity, which
JSON does not have, become null there. In CSV, text that a spreadsheet would run as a formula begins with ``'``.
"""

import base64
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from schemas.errors import QueryError

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")

Convert = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Result:
    """A result on its way: its columns, and its rows batch by batch."""

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]


def print_result(result: Result | pa.Table, form: str = "table", file: TextIO | None = None) -> None:
    """Write a result as ``table``, ``json``, ``ndjson``, ``csv`` or ``parquet`` to a text file, stdout by default.

    Parquet goes to the file's ``buffer``. Raises QueryError for another format, or for Parquet on a terminal.
    """
    if not isinstance(result, Result):
        result = Result(result.schema, iter(result.to_batches(max_chunksize=1024)))
    if form not in WRITERS:
        raise QueryError(f"--format {form}: is not known; choose one of {', '.join(WRITERS)}")
    WRITERS[form](result, file or sys.stdout)


def converter(kind: pa.DataType, *, show_bytes: Callable[[bytes], str], keep_nan: bool = False) -> Convert:
    """A function that turns the values of an Arrow type into what JSON can hold; maps become objects."""

    def inner(part: pa.DataType) -> Convert:
        return converter(part, show_bytes=show_bytes, keep_nan=keep_nan)

    if pt.is_map(kind):
        value_of = inner(kind.item_type)
        return _nullable(lambda value: {str(key): value_of(item) for key, item in value})
    if pt.is_struct(kind):
        fields = {field.name: inner(field.type) for field in kind}
        return _nullable(lambda value: {name: convert(value[name]) for name, convert in fields.items()})
    if pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind):
        item_of = inner(kind.value_type)
        return _nullable(lambda value: [item_of(item) for item in value])
    if pt.is_dictionary(kind):
        return inner(kind.value_type)
    if pt.is_binary(kind) or pt.is_large_binary(kind) or pt.is_fixed_size_binary(kind):
        return _nullable(show_bytes)
    if pt.is_floating(kind):
        shorten = _shortest_float32 if pt.is_float32(kind) else float
        return _nullable(lambda value: shorten(value) if math.isfinite(value) or keep_nan else None)
    if pt.is_decimal(kind):
        return _nullable(int if kind.scale == 0 else float)
    return _nullable(lambda value: _simple(value, show_bytes))


def as_base64(data: bytes) -> str:
    """Bytes for JSON and CSV."""
    return base64.b64encode(data).decode()


def rows(result: Result, **options: Any) -> Iterator[list[Any]]:
    """The rows, converted; ``options`` as for ``converter``."""
    converts = [converter(field.type, **options) for field in result.schema]
    for batch in result.batches:
        columns = [_column(*each) for each in zip(result.schema.names, batch.columns, converts, strict=True)]
        yield from map(list, zip(*columns, strict=True))


def _column(name: str, values: pa.Array, convert: Convert) -> list[Any]:
    try:
        return [convert(value) for value in values.to_pylist()]
    except (OverflowError, ValueError):  # the year 290000, three billion days
        raise QueryError(f"query: column {name!r} holds a value that cannot be shown as a date or number; cast it to varchar") from None


def _write_json(result: Result, file: TextIO) -> None:
    separator = "[\n "
    for line in _json_lines(result):
        file.write(separator + line)
        separator = ",\n "
    file.write("[]\n" if separator.startswith("[") else "\n]\n")


def _write_ndjson(result: Result, file: TextIO) -> None:
    for line in _json_lines(result):
        file.write(line + "\n")


def _json_lines(result: Result) -> Iterator[str]:
    for row in rows(result, show_bytes=as_base64):
        yield json.dumps(dict(zip(result.schema.names, row, strict=True)), ensure_ascii=False, allow_nan=False)


def _write_csv(result: Result, file: TextIO) -> None:
    file.write(",".join(_csv_cell(name) for name in result.schema.names) + "\n")
    for row in rows(result, show_bytes=as_base64, keep_nan=True):
        file.write(",".join(_csv_cell(value) for value in row) + "\n")


def _csv_cell(value: Any) -> str:
    """RFC 4180; csv.writer leaves a lone carriage return unquoted, which readers take for the end of the row."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case float() if math.isnan(value):
            return "NaN"
        case int() | float():
            return str(value)
        case str():
            text = _harmless(value)
        case _:
            text = json.dumps(value, ensure_ascii=False)
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\r\n') else text


def _harmless(text: str) -> str:
    """Spreadsheets run such text as a formula (OWASP: CSV injection)."""
    return "'" + text if text.startswith(FORMULA_STARTS) else text


def _write_parquet(result: Result, file: TextIO) -> None:
    if file.isatty():
        raise QueryError("--format parquet: is binary and not for a terminal; redirect it to a file")
    with pq.ParquetWriter(file.buffer, result.schema, compression="zstd") as writer:
        for batch in result.batches:
            writer.write_batch(batch)


def _write_table(result: Result, file: TextIO) -> None:
    from jobs.result_table import write_table

    write_table(result, file)


def _nullable(convert: Convert) -> Convert:
    return lambda value: None if value is None else convert(value)


def _shortest_float32(value: float) -> float:
    """0.287, not 0.28700000047683716."""
    return float(str(np.float32(value)))


def _simple(value: Any, show_bytes: Callable[[bytes], str]) -> Any:
    if isinstance(value, bytes):
        return show_bytes(value)
    if isinstance(value, bool | int | str):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


WRITERS: dict[str, Callable[[Result, TextIO], None]] = {
    "table": _write_table,
    "json": _write_json,
    "ndjson": _write_ndjson,
    "csv": _write_csv,
    "parquet": _write_parquet,
}
