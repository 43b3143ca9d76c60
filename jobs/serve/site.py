"""Which page an address leads to. Knows nothing of HTTP but the path, the query and what comes back."""

import re
from collections.abc import Callable, Mapping
from urllib.parse import parse_qs

from jobs.report.facts import gather_counts
from jobs.rows import Rows
from jobs.run_dir import RunDir
from jobs.serve import pages
from jobs.serve.alike_page import AlikePage
from jobs.serve.answer import KEPT, TYPES, Answer, html
from jobs.serve.draw_page import Place, draw_page
from jobs.serve.pictures import Pictures
from jobs.serve.view import IMAGES_PER_PAGE, View, equals, find, stretch
from jobs.verify_rows import SAMPLE_ID
from schemas.errors import QueryError, UserError

REFRESH_SECONDS = 10  # of the overview, while the run goes on or is read
OTHERS = 12  # draws of a prompt that are shown beside one


class Site:
    """The pages of one run."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._pictures = Pictures(rows.run, rows.marker)
        self._alike_page = AlikePage(rows)
        self._routes: list[tuple[str, Callable[..., Answer]]] = [
            ("/", self._overview),
            ("/gallery", self._gallery),
            ("/alike", self._alike),
            (f"/draws/({SAMPLE_ID})", self._draw),
            (f"/images/([0-9]{{1,9}})/({SAMPLE_ID})", self._image),
            (f"/thumbnails/([0-9]{{1,9}})/({SAMPLE_ID})", self._thumbnail),
            ("/inputs/([0-9a-f]{64})", self._input),
        ]

    @property
    def run(self) -> RunDir:
        """The run that is shown."""
        return self._rows.run

    def answer(self, path: str, query: str) -> Answer:
        """What an address leads to; what goes wrong is told on a page."""
        for pattern, page in self._routes:
            if match := re.fullmatch(pattern, path):
                try:
                    return page(query, *match.groups())
                except KeyError:
                    break
                except UserError as error:
                    return self.says(500, "That did not work", str(error))
        return self.says(404, "Not found", f"{self.run.store.root} has nothing at {path}")

    def submit(self, path: str, fields: Mapping[str, str]) -> Answer | None:
        """A run that is shown takes nothing in."""
        return None

    def says(self, status: int, title: str, text: str) -> Answer:
        """A page that only says something."""
        return html(pages.message(self.run, title, text), status=status)

    def _overview(self, _: str) -> Answer:
        self._rows.refresh()
        facts = gather_counts(self.run, self._rows.ask)
        running = facts.status.state == "running"
        again = running or self._rows.behind
        return html(pages.overview(self._rows, facts), headers={"Refresh": str(REFRESH_SECONDS)} if again else {})

    def _gallery(self, query: str) -> Answer:
        self._rows.refresh()
        view = View.parse(query)
        try:
            found, error = find(self._rows, view), None
        except QueryError as wrong:
            found, error = None, str(wrong)
        return html(pages.gallery(self._rows, view, found, error), status=400 if error else 200)

    def _alike(self, _: str) -> Answer:
        self._rows.refresh()
        return html(self._alike_page.html())

    def _draw(self, query: str, sample_id: str) -> Answer:
        self._rows.refresh()
        rows = self._rows.ask(f"select * from metadata where sample_id = '{sample_id}'")  # noqa: S608 - hexadecimal digits
        if not rows:
            raise KeyError(sample_id)
        others = find(self._rows, View(where=equals("prompt_id", rows[0]["prompt_id"])))
        view, place = self._place(query, sample_id)
        return html(draw_page(self._rows, rows[0], view, place, others.rows[:OTHERS], others.total))

    def _place(self, query: str, sample_id: str) -> tuple[View, Place | None]:
        """The view that led to a draw, and where it stands there; None if it stands there no longer."""
        view = View.parse(query)
        number = parse_qs(query).get("n", [""])[-1]
        if not (number.isascii() and number.isdigit() and len(number) < 10):
            return view, None
        at = int(number)
        try:
            total = find(self._rows, view).total
            near = stretch(self._rows, view, max(0, at - 1), 3 if at else 2)
        except QueryError:
            return view, None
        here = 1 if at else 0
        if len(near) <= here or near[here]["sample_id"] != sample_id:
            return view, None
        before = near[0]["sample_id"] if at else None
        after = near[here + 1]["sample_id"] if len(near) > here + 1 else None
        return view.with_(page=at // IMAGES_PER_PAGE + 1), Place(number=at, total=total, before=before, after=after)

    def _image(self, _: str, shard_id: str, sample_id: str) -> Answer:
        data = self._pictures.original(int(shard_id), sample_id)
        name = {"Content-Disposition": f'inline; filename="{sample_id}.{self._pictures.format}"'}
        return Answer(body=data, kind=TYPES[self._pictures.format], headers=KEPT | name)

    def _thumbnail(self, _: str, shard_id: str, sample_id: str) -> Answer:
        data, kind = self._pictures.small(int(shard_id), sample_id)
        return Answer(body=data, kind=TYPES[kind], headers=KEPT)

    def _input(self, _: str, sha256: str) -> Answer:
        return Answer(body=self._pictures.conditioning(sha256), kind="image/webp", headers=KEPT)
