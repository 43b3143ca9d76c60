"""One draw as HTML: its image at full size, verdict, scores, how to make it again, and every column."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.report.page import text
from jobs.rows import Rows
from jobs.run_dir import RunDir
from jobs.serve.parts import figure, page, pixelated, shown, verdict
from jobs.serve.view import View, equals
from schemas.modes import ROLES
from schemas.tables import metadata_columns

TOLD_ABOVE = ("prompt", "negative_prompt", "status", "reason", "error", "tags")  # of the columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a draw stands in a view: its number of all, from 0, and the sample ids beside it."""

    number: int
    total: int
    before: str | None
    after: str | None


def draw_page(rows: Rows, row: Mapping[str, Any], view: View, place: Place | None, others: Sequence[Mapping[str, Any]], total: int) -> str:
    """``others`` are some of the ``total`` draws of its prompt."""
    made = row["image_sha256"] is not None
    side = [
        f'<p class="prompt">{text(row["prompt"])}</p>',
        f'<p class="soft">negative: {text(row["negative_prompt"])}</p>' if row["negative_prompt"] else "",
        f'<p class="verdict {row["status"]}">{verdict(row)}</p>',
        f'<pre class="wrong">{text(row["error"])}</pre>' if row["error"] is not None else "",
        _scores(rows, row),
        _again(rows.run, row),
    ]
    image = _image(row) if made else '<div class="card missing">no image</div>'
    beside = f'<div class="card">{"".join(side)}</div>{_tags(row)}'
    parts = [_neighbours(view, place), f'<div class="draw"><div>{image}{_inputs(row)}</div><div>{beside}</div></div>']
    if total > 1:
        all_of_them = text(View(where=equals("prompt_id", row["prompt_id"])).url)
        figures = "".join(
            figure(
                other,
                f"/draws/{other['sample_id']}",
                score=rows.score,
                foot=f"seed {other['seed']}",
                brief=True,
                here=other["sample_id"] == row["sample_id"],
            )
            for other in others
        )
        parts.append(f'<h2><a href="{all_of_them}">Draws of this prompt</a> <span class="soft">· {total:,}</span></h2>')
        parts.append(f'<div class="pictures few">{figures}</div>')
    parts.append(f"<h2>All columns</h2>{_columns(rows, row)}")
    return page(rows.run, row["sample_id"], parts, at="images")


def _neighbours(view: View, place: Place | None) -> str:
    if place is None:
        return '<div class="head"><a href="/gallery">‹ all images</a></div>'

    def step(sample_id: str | None, number: int, html: str) -> str:
        return f'<a href="{text(view.draw_url(sample_id, number))}">{html}</a>' if sample_id else f"<span>{html}</span>"

    steps = step(place.before, place.number - 1, "‹ previous") + step(place.after, place.number + 1, "next ›")
    back = f'<a href="{text(view.url)}">‹ images</a><b>{place.number + 1:,} of {place.total:,}</b>'
    return f'<div class="head">{back}<span class="pager">{steps}</span></div>'


def _image(row: Mapping[str, Any]) -> str:
    where = f"/images/{row['shard_id']}/{row['sample_id']}"
    size = f'width="{row["width"]}" height="{row["height"]}"'
    facts = f"{row['width']} × {row['height']} px, {row['format']}, {row['num_bytes']:,} bytes"
    return (
        f'<figure class="whole"><a href="{where}"><img{pixelated(row)} src="{where}" alt="{text(row["prompt"])}" {size}></a>'
        f'<figcaption class="soft">{text(facts)} · <a href="{where}">open the file</a></figcaption></figure>'
    )


def _inputs(row: Mapping[str, Any]) -> str:
    figures = "".join(
        f'<figure><img src="/inputs/{text(sha256)}" alt="{role} image"><figcaption class="soft">{role} image</figcaption></figure>'
        for role in ROLES
        if (sha256 := row[f"{role}_sha256"])
    )
    return f'<div class="pictures few">{figures}</div>' if figures else ""


def _scores(rows: Rows, row: Mapping[str, Any]) -> str:
    found = {name: row.get(f"{name}_score") for name in rows.scorers}
    cards = "".join(f"<div><b>{text(shown(value))}</b>{text(name)}</div>" for name, value in found.items() if value is not None)
    return f'<div class="numbers">{cards}</div>' if cards else ""


def _again(run: RunDir, row: Mapping[str, Any]) -> str:
    if row["image_sha256"] is None:
        return '<h3>To make failed draws again</h3><pre class="command">promptmill run CONFIG --retry-failed</pre>'
    if run.job.config.model.endpoint:
        return '<p class="soft">A server drew it; it cannot be made again.</p>'
    command = shlex.join(["promptmill", "verify", run.store.root, "--sample", row["sample_id"]])
    return f'<h3>To make this image again and compare its bytes</h3><pre class="command">{text(command)}</pre>'


def _columns(rows: Rows, row: Mapping[str, Any]) -> str:
    """Those that have a value."""
    told = [(name, meaning) for name, _, _, meaning in metadata_columns(rows.scorers) if name not in TOLD_ABOVE]
    lines = [
        f'<div><dt title="{text(meaning)}">{text(name)}</dt><dd>{text(shown(row[name]))}</dd></div>'
        for name, meaning in told
        if row.get(name) not in (None, [], "")
    ]
    return f'<dl class="card">{"".join(lines)}</dl>'


def _tags(row: Mapping[str, Any]) -> str:
    """Each leads to the draws that share it."""
    lines = [
        f'<tr><th>{text(name)}</th><td><a href="{text(View(where=equals(f"tags.{name}", value)).url)}">{text(value)}</a></td></tr>'
        for name, value in dict(row["tags"] or {}).items()
    ]
    return f'<div class="card"><h3>Tags</h3><table>{"".join(lines)}</table></div>' if lines else ""
