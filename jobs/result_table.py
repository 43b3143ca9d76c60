"""The result of a query as a table for people.

On a terminal: a frame, one line a row, the widest columns cut to fit; more columns than can be read side by side
are listed one below the other. Into a pipe: plain aligned text, nothing cut but the number of rows.
"""

import json
import math
from collections.abc import Sequence
from itertools import islice
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.types as pt
from rich import box
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from jobs.results import Result, rows

TERMINAL_ROWS = 50
LISTED_ROWS = 10
PIPE_ROWS = 100_000
NARROWEST = 8  # a column is never cut below this
SHOWN_ANYWAY = "\u200c\u200d"  # joiners, that scripts and emoji need; all else that does not print is escaped


def write_table(result: Result, file: TextIO) -> None:
    """Write a result, for the terminal or the pipe that ``file`` is."""
    if not file.isatty():
        return _write_plain(result, file)
    console = Console(file=file)
    listed = len(result.schema) * (NARROWEST + 3) > console.width
    limit = LISTED_ROWS if listed else TERMINAL_ROWS
    found = _cells(result, limit + 1)
    shown = found[:limit]
    console.print(listing(result.schema, shown) if listed else framed(result.schema, shown, console.width))
    if len(found) > limit:
        console.print(Text(f" the first {limit} rows; for all of them: --format csv, json, ndjson or parquet", style="dim"))
    elif len(shown) != 1:
        console.print(Text(f" {len(shown)} rows", style="dim"))
    return None


def framed(schema: pa.Schema, cells: Sequence[Sequence[str]], width: int) -> RenderableType:
    """One line a row."""
    natural = [max([cell_len(name), *(cell_len(row[i]) for row in cells)]) for i, name in enumerate(schema.names)]
    table = Table(box=box.SIMPLE_HEAD, header_style="bold")
    for field, column_width in zip(schema, _fit(natural, width - 3 * len(natural) - 1), strict=True):
        name = Text(_printable(field.name))
        table.add_column(name, justify=_side(field.type), no_wrap=True, overflow="ellipsis", width=column_width)
    for row in cells:
        table.add_row(*(Text(cell, style="dim" if cell == "null" else "") for cell in row))
    return table


def listing(schema: pa.Schema, cells: Sequence[Sequence[str]]) -> RenderableType:
    """One line a value; rows one below the other."""
    blocks: list[RenderableType] = []
    for number, row in enumerate(cells, 1):
        block = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 1))
        block.add_column(style="bold", no_wrap=True)
        block.add_column(overflow="fold")
        for name, cell in zip(schema.names, row, strict=True):
            block.add_row(Text(_printable(name)), Text(cell, style="dim" if cell == "null" else ""))
        blocks += [Text(f"── row {number} ──", style="cyan"), block]
    return Group(*blocks)


def _write_plain(result: Result, file: TextIO) -> None:
    found = _cells(result, PIPE_ROWS + 1)
    lines = [[_printable(name) for name in result.schema.names], *found[:PIPE_ROWS]]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    right = [_side(field.type) == "right" for field in result.schema]
    for line in lines:
        padded = []
        for cell, width, to_right in zip(line, widths, right, strict=True):
            gap = " " * (width - cell_len(cell))
            padded.append(gap + cell if to_right else cell + gap)
        file.write("  ".join(padded).rstrip() + "\n")
    if len(found) > PIPE_ROWS:
        file.write(f"... the first {PIPE_ROWS:,} rows; for all of them: --format csv, json, ndjson or parquet\n")


def _cells(result: Result, limit: int) -> list[list[str]]:
    converted = rows(result, show_bytes=lambda data: f"<{len(data):,} bytes>", keep_nan=True)
    return [[_text(value) for value in row] for row in islice(converted, limit)]


def _text(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case float() if not math.isfinite(value):
            return {"nan": "NaN"}.get(str(value), str(value))
        case float():
            return f"{value:.6g}" if abs(value) < 1e6 else f"{value:.2f}"
        case dict() | list():
            return _printable(json.dumps(value, ensure_ascii=False))
    return _printable(str(value))


def _printable(text: str) -> str:
    """No line breaks, and nothing that could steer a terminal."""
    return "".join(ch if ch.isprintable() or ch in SHOWN_ANYWAY else ch.encode("unicode_escape").decode() for ch in text)


def _side(kind: pa.DataType) -> Any:
    return "right" if pt.is_integer(kind) or pt.is_floating(kind) or pt.is_decimal(kind) else "left"


def _fit(widths: Sequence[int], budget: int) -> list[int]:
    """Cut the widest columns until all fit."""
    fitted = list(widths)
    while sum(fitted) > budget and max(fitted) > NARROWEST:
        widest = max(range(len(fitted)), key=fitted.__getitem__)
        fitted[widest] -= 1
    return fitted
