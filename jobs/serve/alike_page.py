"""Groups of images that look alike, as HTML; found anew when the run has changed."""

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jobs.embeddings import files
from jobs.report.alike import Alike, Group, find_alike
from jobs.report.facts import rules_now
from jobs.report.page import alike, alike_group, text
from jobs.rows import Rows
from jobs.serve.pages import behind
from jobs.serve.parts import figure, page
from jobs.serve.view import View


class AlikePage:
    """The page, kept until rows, verdicts or features are others; made by one thread at a time, for it may take seconds."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._lock = threading.Lock()
        self._made_of: tuple[int, Sequence[str]] | None = None
        self._html = ""

    def html(self) -> str:
        """As things stand. Raises UserError."""
        with self._lock:
            made_of = (self._rows.changes, files(self._rows.run, self._rows.run.markers()))
            if self._made_of != made_of:
                self._html, self._made_of = _page(self._rows), made_of
            return self._html


def _page(rows: Rows) -> str:
    scorer = rows.scorers[0] if rows.scorers else None
    found = find_alike(rows.run, rows.ask, rules_now(rows.run), scorer)
    ids = _list(sample_id for one in found for group in one.groups for sample_id in group.sample_ids)
    by_id = {row["sample_id"]: row for row in rows.ask(f"select * from metadata where sample_id in ({ids})")} if found else {}  # noqa: S608
    parts = [part for one in found for part in alike(one, _groups(rows, one, by_id))]
    none = '<p class="soft">There are no images yet.</p>'
    return page(rows.run, "look alike", ["<h1>Look alike</h1>", behind(rows), *(parts or [none])], at="alike")


def _groups(rows: Rows, found: Alike, by_id: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Each with the address of what is shown of it; a draw that went meanwhile is left out."""

    def one(group: Group) -> str:
        here = [sample_id for sample_id in group.sample_ids if sample_id in by_id]
        figures = (figure(by_id[one], f"/draws/{one}", score=rows.score, foot=group.how[one]) for one in here)
        gallery = View(where=f"sample_id in ({_list(here)})", order=rows.score, down=True).url
        return alike_group(group, "".join(figures), f'<p class="soft"><a href="{text(gallery)}">Show them among the images</a></p>')

    return [one(group) for group in found.groups]


def _list(sample_ids: Iterable[str]) -> str:
    return ", ".join(f"'{sample_id}'" for sample_id in sample_ids)
