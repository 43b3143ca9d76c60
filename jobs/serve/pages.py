"""What is found of a run to pages of HTML: no script; all text of prompts, labels and errors is escaped where it enters."""

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.judged import added_scorers
from jobs.report.facts import Facts
from jobs.report.page import SMALL_PX, STYLE, document, sections, text
from jobs.run_dir import RunDir
from jobs.selection import expression
from jobs.serve.view import Found, View, sortable
from schemas.modes import ROLES
from schemas.tables import metadata_columns

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
OWN_STYLE = Path(__file__).with_name("style.css")
IMAGE_TYPES = {"webp": "image/webp", "png": "image/png", "jpeg": "image/jpeg"}
LEFT_OUT = ("sample_id", "prompt", "negative_prompt", "status", "reason", "error", "tags")  # of the table of a draw: they stand above it


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a draw stands in a view: its number of all, from 0, and the sample ids beside it."""

    number: int
    total: int
    before: str | None
    after: str | None


def overview(run: RunDir, facts: Facts) -> str:
    """Counts and diagrams of the report; what they count leads to the gallery."""

    def link(column: str, value: object, shown: str) -> str:
        return f'<a href="{text(View(where=_equals(run, column, value)).url)}">{shown}</a>'

    return _page(run, "", [f"<h1>{text(_name(run))}</h1>", *sections(facts, link)], at="overview")


def gallery(run: RunDir, view: View, found: Found | None, error: str | None) -> str:
    """A page of images, under the condition that chooses them."""
    parts = [_form(run, view), _chips(view)]
    if error is not None:
        parts.append(f'<div class="card wrong" role="alert">{text(error)}</div>')
    if found is not None:
        pager = _pager(view, found)
        parts += [pager, f'<div class="pictures">{"".join(_figures(run, view, found))}</div>', pager if found.pages > 1 else ""]
    return _page(run, "images", [*parts, _columns(run)], at="images")


def draw(run: RunDir, row: Mapping[str, Any], view: View, place: Place | None, others: Sequence[Mapping[str, Any]], total: int) -> str:
    """One draw: its image at full size, verdict, scores, how to make it again, and every column. ``others`` are of its prompt."""
    head = f'<div class="head">{_neighbours(view, place)}</div>'
    shown = _image(run, row) if row["image_sha256"] is not None else '<div class="card missing">no image</div>'
    side = [
        f'<p class="prompt">{text(row["prompt"])}</p>',
        f'<p class="soft">without: {text(row["negative_prompt"])}</p>' if row["negative_prompt"] else "",
        f'<p><span class="verdict {row["status"]}">{_verdict(row)}</span></p>',
        f'<pre class="wrong">{text(row["error"])}</pre>' if row["error"] is not None else "",
        _scores(run, row),
        _again(run, row),
    ]
    parts = [head, f'<div class="draw"><div>{shown}{_inputs(row)}</div><div class="card">{"".join(side)}</div></div>']
    if len(others) > 1:
        all_of_them = View(where=_equals(run, "prompt_id", row["prompt_id"])).url
        more = f' <span class="soft">· <a href="{text(all_of_them)}">all {total:,}</a></span>'
        figures = "".join(_figure(run, other, "", f"/draws/{other['sample_id']}", here=row["sample_id"]) for other in others)
        parts.append(f'<h2>Draws of this prompt{more}</h2><div class="pictures few">{figures}</div>')
    parts.append(f'<h2>Parameters</h2><div class="grid">{_table(_columns_of(run, row))}{_table(_tags_of(run, row), "Tags")}</div>')
    return _page(run, f"draw {row['sample_id']}", parts, at="images")


def message(run: RunDir, title: str, said: str) -> str:
    """A page that only says something."""
    return _page(run, title, [f"<h1>{text(title)}</h1>", f'<div class="card wrong">{text(said)}</div>'], at="")


def _page(run: RunDir, title: str, body: Sequence[str], *, at: str) -> str:
    tabs = (("overview", "/", "Overview"), ("images", "/gallery", "Images"))
    links = "".join(f'<a href="{where}"{" aria-current=page" if at == name else ""}>{shown}</a>' for name, where, shown in tabs)
    nav = f'<nav><a class="name" href="/">{text(_name(run))}</a><span>{links}</span></nav>'
    whole = f"{title} · {_name(run)}" if title else _name(run)
    return document(whole, [nav, *body], policy=POLICY, style=OWN_STYLE.read_text())


def _name(run: RunDir) -> str:
    return run.store.root.rstrip("/").rsplit("/", 1)[-1]


def _equals(run: RunDir, column: str, value: object) -> str:
    quoted = "'" + str(value).replace("'", "''") + "'"
    return f"{expression(run, column).strip(chr(34))} = {quoted}"


def _form(run: RunDir, view: View) -> str:
    columns = sortable(run)
    if view.order and view.order not in columns:
        columns = [view.order, *columns]
    orders = "".join(f'<option value="{text(name)}"{_chosen(name == view.order)}>{text(name)}</option>' for name in columns)
    return (
        '<form method="get" action="/gallery"><label class="wide">where<input name="where" spellcheck="false" autocomplete="off"'
        f' placeholder="clip_score &lt; 0.3 and label = \'star\'" value="{text(view.where)}"></label>'
        f'<label>sort by<select name="order"><option value="">plan order</option>{orders}</select></label>'
        f'<label>from<select name="down"><option value="">low to high</option><option value="1"{_chosen(view.down)}>high to low</option>'
        "</select></label><button>Show</button></form>"
    )


def _chosen(yes: bool) -> str:
    return " selected" if yes else ""


def _chips(view: View) -> str:
    chips = [("all", ""), *((status, f"status = '{status}'") for status in ("accepted", "rejected", "failed"))]
    links = (
        f'<a href="{text(View(where=where, order=view.order, down=view.down).url)}"{" aria-current=true" if where == view.where else ""}>{name}</a>'
        for name, where in chips
    )
    return f'<div class="chips">{"".join(links)}</div>'


def _pager(view: View, found: Found) -> str:
    span = f"{found.first + 1:,}–{found.first + len(found.rows):,} of {found.total:,}" if found.rows else f"{found.total:,} draws"
    steps = (
        ("« first", 1, found.page > 1),
        ("‹ previous", found.page - 1, found.page > 1),
        ("next ›", found.page + 1, found.page < found.pages),
        ("last »", found.pages, found.page < found.pages),
    )
    links = "".join(f'<a href="{text(view.at(to).url)}">{name}</a>' if live else f"<span>{name}</span>" for name, to, live in steps)
    return f'<div class="head"><b>{span}</b><span class="pager">{links if found.pages > 1 else ""}</span></div>'


def _figures(run: RunDir, view: View, found: Found) -> Iterable[str]:
    for number, row in enumerate(found.rows, found.first):
        query = "&".join(part for part in (View(where=view.where, order=view.order, down=view.down).query, f"n={number}") if part)
        yield _figure(run, row, view.order, f"/draws/{row['sample_id']}?{query}")


def _figure(run: RunDir, row: Mapping[str, Any], order: str, target: str, here: str = "") -> str:
    """``order`` is the column whose value is shown first; the first score without."""
    prompt = text(row["prompt"])
    if row["image_sha256"] is None:
        picture = '<span class="missing">no image</span>'
    else:
        where = f"/thumbnails/{row['shard_id']}/{row['sample_id']}"
        picture = f'<img{_pixelated(row)} src="{where}" alt="{prompt}" loading="lazy" width="{row["width"]}" height="{row["height"]}">'
    first = f"{order}: {_shown(row[order])}" if order and order in row and not order.endswith("_score") else ""
    score = order if order.endswith("_score") else next((f"{name}_score" for name in _scorers(run)), "")
    if score and row.get(score) is not None:
        value = f'<span class="score">{text(_shown(row[score]))}</span> '
    else:
        value = ""
    label = f" · {text(row['label'])}" if row["label"] is not None else ""
    foot = text(first) if first else f"seed {row['seed']}{label}"
    return (
        f'<figure{" class=here" if row["sample_id"] == here else ""}><a href="{text(target)}">{picture}</a>'
        f'<figcaption>{value}<span class="{row["status"]}">{_verdict(row)}</span><p title="{prompt}">{prompt}</p>'
        f'<span class="soft">{foot}</span></figcaption></figure>'
    )


def _pixelated(row: Mapping[str, Any]) -> str:
    return ' class="small"' if max(row["width"], row["height"]) <= SMALL_PX else ""


def _verdict(row: Mapping[str, Any]) -> str:
    reason = "" if row["reason"] is None else f": {row['reason'].replace('_', ' ')}"
    return text(f"{row['status']}{reason}")


def _neighbours(view: View, place: Place | None) -> str:
    if place is None:
        return '<a href="/gallery">‹ all images</a>'
    base = View(where=view.where, order=view.order, down=view.down)

    def link(sample_id: str | None, number: int, shown: str) -> str:
        query = "&".join(part for part in (base.query, f"n={number}") if part)
        return f'<a href="{text(f"/draws/{sample_id}?{query}")}">{shown}</a>' if sample_id else f"<span>{shown}</span>"

    steps = link(place.before, place.number - 1, "‹ previous") + link(place.after, place.number + 1, "next ›")
    back = f'<a href="{text(view.url)}">‹ images</a>'
    return f'{back}<b>{place.number + 1:,} of {place.total:,}</b><span class="pager">{steps}</span>'


def _image(run: RunDir, row: Mapping[str, Any]) -> str:
    where = f"/images/{row['shard_id']}/{row['sample_id']}"
    size = f'width="{row["width"]}" height="{row["height"]}"'
    facts = f"{row['width']} × {row['height']} px, {row['format']}, {row['num_bytes']:,} bytes"
    return (
        f'<figure class="whole"><a href="{where}"><img{_pixelated(row)} src="{where}" alt="{text(row["prompt"])}" {size}></a>'
        f'<figcaption class="soft">{text(facts)} · <a href="{where}">the file itself</a></figcaption></figure>'
    )


def _inputs(row: Mapping[str, Any]) -> str:
    figures = "".join(
        f'<figure><img src="/inputs/{sha256}" alt="{role} image"><figcaption class="soft">{role} image</figcaption></figure>'
        for role in ROLES
        if (sha256 := row[f"{role}_sha256"])
    )
    return f'<div class="pictures few">{figures}</div>' if figures else ""


def _scores(run: RunDir, row: Mapping[str, Any]) -> str:
    found = [(name, row.get(f"{name}_score")) for name in _scorers(run)]
    cards = "".join(f"<div><b>{text(_shown(value))}</b>{text(name)}</div>" for name, value in found if value is not None)
    return f'<div class="numbers">{cards}</div>' if cards else ""


def _again(run: RunDir, row: Mapping[str, Any]) -> str:
    if row["image_sha256"] is None:
        return "<h3>To make failed draws again</h3><pre>promptmill run CONFIG --retry-failed</pre>"
    if run.job.config.model.endpoint:
        return '<p class="soft">It was drawn by a server, which promises no second one alike.</p>'
    command = shlex.join(["promptmill", "verify", run.store.root, "--sample", row["sample_id"]])
    return f'<h3>To make it again and compare the bytes</h3><pre class="command">{text(command)}</pre>'


def _columns_of(run: RunDir, row: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """Name, meaning and value as HTML of the columns that have one."""
    columns = [(name, meaning) for name, _, _, meaning in metadata_columns(_scorers(run)) if name not in LEFT_OUT]
    told = [("sample_id", "primary key: hash of everything that decides the image"), *columns]
    return [(name, meaning, text(_shown(row[name]))) for name, meaning in told if row.get(name) not in (None, [], "")]


def _tags_of(run: RunDir, row: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    found = dict(row["tags"] or {})
    return [
        (name, "tag", f'<a href="{text(View(where=_equals(run, f"tags.{name}", value)).url)}">{text(value)}</a>')
        for name, value in found.items()
    ]


def _table(rows: Sequence[tuple[str, str, str]], title: str = "") -> str:
    lines = "".join(f'<tr><th title="{text(meaning)}">{text(name)}</th><td>{value}</td></tr>' for name, meaning, value in rows)
    head = f"<h3>{title}</h3>" if title else ""
    return f'<div class="card">{head}<table>{lines}</table></div>' if lines else ""


def _columns(run: RunDir) -> str:
    rows = "".join(
        f"<tr><td><code>{text(name)}</code></td><td>{text(kind)}</td><td>{text(meaning)}</td></tr>"
        for name, kind, _, meaning in metadata_columns(_scorers(run))
    )
    hint = "A condition is SQL as DuckDB speaks it, over these columns; a tag is <code>tags['name']</code>."
    return f'<details class="columns"><summary>Columns</summary><p class="soft">{hint}</p><table>{rows}</table></details>'


def _scorers(run: RunDir) -> list[str]:
    return [*run.job.scorers, *added_scorers(run.store)]


def _shown(value: Any) -> str:
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case float():
            return "not a number" if math.isnan(value) else f"{value:.6g}"
        case list():
            return ", ".join(map(_shown, value))
    return str(value)
