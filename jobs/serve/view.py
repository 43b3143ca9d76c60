"""What of a run a page shows: a condition, an order and a page number, as they stand in its address."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qs, urlencode

import pyarrow as pa
import pyarrow.types as pt

from jobs.judged import added_scorers
from jobs.run_dir import RunDir
from jobs.selection import expression
from jobs.serve.rows import Rows
from schemas.errors import QueryError
from schemas.tables import metadata_schema

IMAGES_PER_PAGE = 48
LAST_PAGE = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """``where`` is an SQL condition on ``metadata``, empty for all rows. ``order`` is a column, or a tag as tags.NAME, empty for
    the plan's order. Pages count from 1."""

    where: str = ""
    order: str = ""
    down: bool = False
    page: int = 1

    @classmethod
    def parse(cls, query: str) -> "View":
        """Of an address; what makes no sense is left out."""
        found = {name: values[-1].strip() for name, values in parse_qs(query, errors="replace").items()}
        page = found.get("page", "")
        number = int(page) if page.isascii() and page.isdigit() and len(page) < 10 else 1
        return cls(where=found.get("where", ""), order=found.get("order", ""), down=found.get("down") == "1", page=max(1, number))

    @property
    def query(self) -> str:
        """As part of an address; defaults are left out."""
        fields = {
            "where": self.where,
            "order": self.order,
            "down": "1" if self.down else "",
            "page": str(self.page) if self.page > 1 else "",
        }
        return urlencode({name: value for name, value in fields.items() if value})

    @property
    def url(self) -> str:
        """Address of the gallery."""
        return f"/gallery?{self.query}" if self.query else "/gallery"

    def at(self, page: int) -> "View":
        """Another page of it."""
        return replace(self, page=page)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The rows of one page, in order, ``first`` the place of the first of them among all ``total``, from 0."""

    rows: Sequence[dict[str, Any]]
    total: int
    first: int
    page: int
    pages: int


def find(rows: Rows, view: View) -> Found:
    """A page of a view; the last one if there are fewer. Raises QueryError."""
    total = _whole(rows.ask(f"select count(*) as n from metadata where {_condition(view)}"))  # noqa: S608 - read-only to it
    pages = max(1, -(-total // IMAGES_PER_PAGE))
    page = min(view.page, pages)
    first = (page - 1) * IMAGES_PER_PAGE
    return Found(rows=stretch(rows, view, first, IMAGES_PER_PAGE), total=total, first=first, page=page, pages=pages)


def stretch(rows: Rows, view: View, first: int, count: int) -> list[dict[str, Any]]:
    """``count`` rows of a view, from a place among all. Row numbers are sorted, and only the rows of the page are read whole."""
    sql = f"select rowid as n from metadata where {_condition(view)} order by {_order(rows.run, view)} limit {count} offset {first}"  # noqa: S608
    numbers = [_whole([row]) for row in rows.ask(sql)]
    if not numbers:
        return []
    chosen = rows.ask(f"select rowid as n, * from metadata where rowid in ({', '.join(map(str, numbers))})")  # noqa: S608 - numbers
    by_number = {row.pop("n"): row for row in chosen}
    return [by_number[number] for number in numbers if number in by_number]


def sortable(run: RunDir) -> list[str]:
    """Columns that have an order, scores first."""
    fields = metadata_schema([*run.job.scorers, *added_scorers(run.store)])
    names = [field.name for field in fields if not pt.is_nested(field.type)]
    return sorted(names, key=lambda name: not name.endswith("_score"))


def _condition(view: View) -> str:
    return f"(\n{view.where}\n)" if view.where else "true"


def _order(run: RunDir, view: View) -> str:
    """NaN comes last, as null does. Ties are in the plan's order."""
    if not view.order:
        return f"shard_id{' desc' if view.down else ''}, rowid{' desc' if view.down else ''}"
    column = expression(run, view.order)
    fields = metadata_schema([*run.job.scorers, *added_scorers(run.store)])
    if not view.order.startswith("tags.") and pa.types.is_floating(fields.field(view.order).type):
        column = f"nullif({column}, 'nan')"
    return f"{column}{' desc' if view.down else ''} nulls last, shard_id, rowid"


def _whole(rows: Sequence[dict[str, Any]]) -> int:
    """The number that a query gave; text that a user made of two queries may give another thing."""
    value = rows[0]["n"] if rows else None
    if type(value) is not int:
        raise QueryError("query: is not one condition on the columns of metadata")
    return value
