"""The pages of ``promptmill label``: one image and its prompt at a time, two buttons. Score and verdict are not shown, so as not to sway.

What is sent must carry the token that the page was given: other sites cannot read it, so they cannot label. The one script is ours, a
file of its own, for keys in the place of buttons; the pages' policy forbids any other, and without it the buttons do.
"""

import re
import secrets
import shlex
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qs

from jobs.label.labels import Labels
from jobs.label.sample import Sample
from jobs.report.page import document
from jobs.report.page import text as escaped
from jobs.run_dir import RunDir
from jobs.serve.answer import KEPT, TYPES, Answer, html
from jobs.serve.parts import POLICY as NO_SCRIPT
from jobs.serve.parts import STYLE as SERVE_STYLE
from jobs.serve.parts import name_of, pixelated
from jobs.serve.pictures import Pictures
from schemas.errors import UserError

POLICY = f"{NO_SCRIPT}; script-src 'self'"
HEADERS = {"Content-Security-Policy": POLICY, "Referrer-Policy": "same-origin"}  # without a referrer a form does not say where it is from
STYLE = SERVE_STYLE.read_text() + Path(__file__).with_name("style.css").read_text()
SCRIPT = Path(__file__).with_name("keys.js")


class LabelSite:
    """A sample of one run, and where its labels go."""

    def __init__(self, run: RunDir, sample: Sample, labels: Labels, csv: Path) -> None:
        self._run, self._sample, self._labels, self._csv = run, sample, labels, csv
        self._numbers = {row["sample_id"]: number for number, row in enumerate(sample.rows)}
        self._pictures = Pictures(run, {marker.shard_id: marker for marker in run.markers()}.get)
        self._token = secrets.token_urlsafe(32)

    def answer(self, path: str, query: str) -> Answer:
        """What an address leads to; what goes wrong is told on a page."""
        if path == "/keys.js":
            return Answer(body=SCRIPT.read_bytes(), kind="text/javascript; charset=utf-8", headers={"Cache-Control": "no-store"})
        try:
            if path == "/":
                return self._page(parse_qs(query).get("n", [""])[-1])
            if match := re.fullmatch("/images/([0-9]{1,6})", path):
                row = self._sample.rows[int(match[1])]
                data = self._pictures.original(row["shard_id"], row["sample_id"])
                return Answer(body=data, kind=TYPES[self._pictures.format], headers=KEPT)
        except (KeyError, IndexError):
            pass
        except UserError as error:
            return self.says(500, "That did not work", str(error))
        return self.says(404, "Not found", f"There is nothing at {path}")

    def submit(self, path: str, fields: Mapping[str, str]) -> Answer | None:
        """Take a label in, and lead to the next image without one."""
        if path != "/label":
            return None
        if not secrets.compare_digest(fields.get("token", "").encode(), self._token.encode()):
            return self.says(403, "Once more, please", "That page is older than this server, and nothing was recorded.")
        number, good = self._numbers.get(fields.get("sample_id", "")), fields.get("good")
        if number is None or good not in ("0", "1"):
            return self.says(400, "That did not work", "This is no label of an image of the sample; nothing was recorded.")
        try:
            self._labels.set(fields["sample_id"], good == "1")
        except UserError as error:
            return self.says(500, "That did not work", str(error))
        following = self._next(number + 1)
        return Answer(body=b"", status=303, headers={"Location": "/" if following is None else f"/?n={following + 1}"})

    def says(self, status: int, title: str, text: str) -> Answer:
        """A page that only says something."""
        parts = [f"<h1>{escaped(title)}</h1>", f'<div class="card wrong">{escaped(text)}</div>', '<p><a href="/">Go on labelling</a></p>']
        return self._html(parts, status=status)

    def _next(self, start: int) -> int | None:
        """The next image without a label, in a circle."""
        rows = self._sample.rows
        around = (number % len(rows) for number in range(start, start + len(rows)))
        return next((number for number in around if rows[number]["sample_id"] not in self._labels.good), None)

    def _page(self, wanted: str) -> Answer:
        if wanted.isascii() and wanted.isdigit() and 0 < len(wanted) < 7:
            number = int(wanted) - 1
        elif (found := self._next(0)) is not None:
            number = found
        else:
            return self._html(self._finished())
        if not 0 <= number < len(self._sample.rows):
            raise KeyError(wanted)
        return self._html([*self._head(number), self._ask(number), f'<link rel="preload" as="image" href="{self._image(number + 1)}">'])

    def _image(self, number: int) -> str:
        return f"/images/{number % len(self._sample.rows)}"

    def _head(self, number: int) -> list[str]:
        good = [self._labels.good[name] for name in self._numbers if name in self._labels.good]
        total = len(self._sample.rows)
        steps = (("b", number - 1, "‹ back"), ("s", number + 1, "later ›"))
        links = "".join(f'<a data-keys="{key}" href="/?n={to % total + 1}">{shown}<kbd>{key}</kbd></a>' for key, to, shown in steps)
        counts = f'<span class="soft">{len(good):,} labelled, {sum(good):,} right</span>'
        shares = ((sum(good), "accepted"), (len(good) - sum(good), "failed"))
        bar = "".join(f'<i class="{kind}" style="width:{count / total:.3%}"></i>' for count, kind in shares)
        return [
            f'<div class="head"><b>{number + 1:,} of {total:,}</b>{counts}<span class="pager">{links}</span></div>',
            f'<div class="bar done">{bar}</div>',
        ]

    def _ask(self, number: int) -> str:
        row = self._sample.rows[number]
        label = self._labels.good.get(row["sample_id"])
        hidden = "".join(
            f'<input type="hidden" name="{name}" value="{escaped(value)}">'
            for name, value in {"token": self._token, "sample_id": row["sample_id"]}.items()
        )
        buttons = "".join(
            f'<button class="{name}" name="good" value="{value}" data-keys="{keys}" aria-pressed="{str(label == bool(value)).lower()}">'
            f"{name}<kbd>{shown}</kbd></button>"
            for name, value, keys, shown in (("wrong", 0, "ArrowLeft n 0", "←"), ("right", 1, "ArrowRight y 1", "→"))
        )
        negative = f'<p class="soft">negative: {escaped(row["negative_prompt"])}</p>' if row["negative_prompt"] else ""
        named = f'<p class="soft">label: {escaped(row["label"])}</p>' if row["label"] is not None else ""
        size = f'width="{row["width"]}" height="{row["height"]}"'
        return (
            f'<div class="ask"><figure><img{pixelated(row)} src="{self._image(number)}" alt="the image to label" {size}></figure>'
            f'<div><div class="card"><span class="soft">Does the image show this?</span><p class="prompt">{escaped(row["prompt"])}</p>'
            f'{negative}{named}</div><form method="post" action="/label" class="answers">{hidden}{buttons}</form></div></div>'
        )

    def _finished(self) -> list[str]:
        good = [self._labels.good[name] for name in self._numbers]
        command = ["promptmill", "audit", self._run.store.root, "--labels", str(self._csv), "--score", self._sample.score]
        counts = f"{sum(good):,} right, {len(good) - sum(good):,} wrong, in {escaped(self._csv)}."
        return [
            f"<h1>All {len(good):,} are labelled</h1>",
            f'<p class="lead">{counts} <a href="/?n=1">Look at them again</a></p>',
            f'<div class="card"><h3>To find the threshold</h3><pre class="command">{escaped(shlex.join(command))}</pre></div>',
        ]

    def _html(self, body: list[str], *, status: int = 200) -> Answer:
        nav = f'<nav><span class="name">{escaped(name_of(self._run))}</span></nav>'
        script = '<script src="/keys.js" defer></script>'
        return html(
            document(f"label · {name_of(self._run)}", [nav, *body, script], policy=POLICY, style=STYLE), status=status, headers=HEADERS
        )
