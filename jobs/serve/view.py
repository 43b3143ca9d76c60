"""What of a run a page shows: a condition, an order and a page number, as they stand in its address."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qs, urlencode

import pyarrow.types as pt

from jobs.rows import Rows
from jobs.selection import expression
from schemas.errors import QueryError

IMAGES_PER_PAGE = 48


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

    def with_(self, *, where: str | None = None, page: int = 1) -> "View":
        """The same order, from another page, or of other rows."""
        return replace(self, where=self.where if where is None else where, page=page)

    def draw_url(self, sample_id: str, number: int) -> str:
        """Address of the draw that stands at a place of the view, from 0."""
        return f"/draws/{sample_id}?{'&'.join(part for part in (self.with_().query, f'n={number}') if part)}"


def equals(column: str, value: object) -> str:
    """The condition that a column, or a tag as tags.NAME, has a value."""
    name = f"tags[{_quoted(column.removeprefix('tags.'))}]" if column.startswith("tags.") else column
    return f"{name} = {_quoted(str(value))}"


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
    sql = f"select rowid as n from metadata where {_condition(view)} order by {_order(rows, view)} limit {count} offset {first}"  # noqa: S608
    numbers = [_whole([row]) for row in rows.ask(sql)]
    if not numbers:
        return []
    chosen = rows.ask(f"select rowid as n, * from metadata where rowid in ({', '.join(map(str, numbers))})")  # noqa: S608 - numbers
    by_number = {row.pop("n"): row for row in chosen}
    return [by_number[number] for number in numbers if number in by_number]


def _condition(view: View) -> str:
    return f"(\n{view.where}\n)" if view.where else "true"


def _order(rows: Rows, view: View) -> str:
    """NaN comes last, as null does. Ties are in the plan's order."""
    down = " desc" if view.down else ""
    if not view.order:
        return f"shard_id{down}, rowid{down}"
    column = expression(rows.run, view.order)
    if not view.order.startswith("tags.") and pt.is_floating(rows.schema.field(view.order).type):
        column = f"nullif({column}, 'nan')"
    return f"{column}{down} nulls last, shard_id, rowid"


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _whole(rows: Sequence[dict[str, Any]]) -> int:
    """The number that a query gave; text that a user made of two queries may give another thing."""
    value = rows[0]["n"] if rows else None
    if type(value) is not int:
        raise QueryError("query: is not one condition on the columns of metadata")
    return value
