"""The overview of a run and the gallery of its images, as HTML."""

from collections.abc import Iterable, Mapping
from typing import Any

from jobs.report.facts import Facts
from jobs.report.page import sections, text
from jobs.rows import Rows
from jobs.run_dir import RunDir
from jobs.serve.parts import figure, name_of, page, shown
from jobs.serve.view import Found, View, equals
from schemas.tables import metadata_columns

STATUSES = ("accepted", "rejected", "failed")


def overview(rows: Rows, facts: Facts) -> str:
    """Counts and diagrams of the report; what they count leads to the gallery."""

    def link(column: str, value: object, html: str) -> str:
        return f'<a href="{text(View(where=equals(column, value)).url)}">{html}</a>'

    return page(rows.run, "", [f"<h1>{text(name_of(rows.run))}</h1>", behind(rows), *sections(facts, link)], at="overview")


def gallery(rows: Rows, view: View, found: Found | None, error: str | None) -> str:
    """A page of images, under the condition that chooses them."""
    parts = [_form(rows, view), _chips(view), behind(rows)]
    if error is not None:
        parts.append(f'<div class="card wrong" role="alert">{text(error)}</div>')
    if found is not None:
        pager = _pager(view, found)
        parts += [pager, f'<div class="pictures">{"".join(_figures(rows, view, found))}</div>', pager if found.pages > 1 else ""]
    return page(rows.run, "images", [*parts, _columns(rows)], at="images")


def behind(rows: Rows) -> str:
    """What is not read yet of a large run."""
    return f'<p class="soft">{rows.behind:,} shards are not read yet; they follow by themselves.</p>' if rows.behind else ""


def message(run: RunDir, title: str, said: str) -> str:
    """A page that only says something."""
    return page(run, title, [f"<h1>{text(title)}</h1>", f'<div class="card wrong">{text(said)}</div>'])


def _form(rows: Rows, view: View) -> str:
    columns = rows.sortable if not view.order or view.order in rows.sortable else [view.order, *rows.sortable]
    orders = "".join(f'<option value="{text(name)}"{_chosen(name == view.order)}>{text(name)}</option>' for name in columns)
    return (
        '<form method="get" action="/gallery"><label class="wide">where<input name="where" spellcheck="false" autocomplete="off"'
        f' placeholder="clip_score &lt; 0.3 and label = \'star\'" value="{text(view.where)}"></label>'
        f'<label>sort by<select name="order"><option value="">plan order</option>{orders}</select></label>'
        f'<label>order<select name="down"><option value="">low to high</option><option value="1"{_chosen(view.down)}>high to low</option>'
        "</select></label><button>Show</button></form>"
    )


def _chosen(yes: bool) -> str:
    return " selected" if yes else ""


def _chips(view: View) -> str:
    chips = {"all": "", **{status: f"status = '{status}'" for status in STATUSES}}
    links = (
        f'<a href="{text(view.with_(where=where).url)}"{" aria-current=true" if where == view.where else ""}>{name}</a>'
        for name, where in chips.items()
    )
    return f'<div class="chips">{"".join(links)}</div>'


def _pager(view: View, found: Found) -> str:
    span = f"{found.first + 1:,}–{found.first + len(found.rows):,} of {found.total:,}" if found.rows else "nothing satisfies it"
    steps = (
        ("« first", 1, found.page > 1),
        ("‹ previous", found.page - 1, found.page > 1),
        ("next ›", found.page + 1, found.page < found.pages),
        ("last »", found.pages, found.page < found.pages),
    )
    links = "".join(f'<a href="{text(view.with_(page=to).url)}">{name}</a>' if live else f"<span>{name}</span>" for name, to, live in steps)
    return f'<div class="head"><b>{span}</b><span class="pager">{links if found.pages > 1 else ""}</span></div>'


def _figures(rows: Rows, view: View, found: Found) -> Iterable[str]:
    score = view.order if view.order.endswith("_score") else rows.score
    for number, row in enumerate(found.rows, found.first):
        yield figure(row, view.draw_url(row["sample_id"], number), score=score, foot=_foot(row, view.order if view.order != score else ""))


def _foot(row: Mapping[str, Any], order: str) -> str:
    """The value that decides the order if there is one, else seed and label."""
    if order.startswith("tags."):
        return f"{order}: {dict(row['tags']).get(order.removeprefix('tags.'), '–')}"
    if order in row:
        return f"{order}: {shown(row[order])}"
    return f"seed {row['seed']}" + (f" · {row['label']}" if row["label"] is not None else "")


def _columns(rows: Rows) -> str:
    lines = "".join(
        f"<tr><td><code>{text(name)}</code></td><td>{text(kind)}</td><td>{text(meaning)}</td></tr>"
        for name, kind, _, meaning in metadata_columns(rows.scorers)
    )
    hint = "A condition is SQL, as DuckDB speaks it, over these columns; a tag is <code>tags['name']</code>."
    return f'<details class="columns"><summary>Columns</summary><p class="soft">{hint}</p><table>{lines}</table></details>'
