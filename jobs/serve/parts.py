"""What several pages share: the frame of a page, an image with its caption, values as text."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.report.page import SMALL_PX, document, text
from jobs.run_dir import RunDir

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
STYLE = Path(__file__).with_name("style.css")
TABS = (("overview", "/", "Overview"), ("images", "/gallery", "Images"), ("alike", "/alike", "Look alike"))


def page(run: RunDir, title: str, body: Sequence[str], *, at: str = "") -> str:
    """HTML parts under the run's name and the tabs; ``at`` is the tab that is open."""
    tabs = "".join(f'<a href="{to}"{" aria-current=page" if at == name else ""}>{shown}</a>' for name, to, shown in TABS)
    nav = f'<nav><a class="name" href="/">{text(name_of(run))}</a><span>{tabs}</span></nav>'
    whole = f"{title} · {name_of(run)}" if title else name_of(run)
    return document(whole, [nav, *body], policy=POLICY, style=STYLE.read_text())


def name_of(run: RunDir) -> str:
    """The last part of its path."""
    return run.store.root.rstrip("/").rsplit("/", 1)[-1]


def figure(row: Mapping[str, Any], target: str, *, score: str, foot: str, brief: bool = False, here: bool = False) -> str:
    """An image, small, that leads to ``target``; under it the value of the column ``score``, verdict, prompt unless ``brief``, ``foot``."""
    prompt, kind = text(row["prompt"]), " class=here" if here else ""
    if row["image_sha256"] is None:
        picture = '<span class="missing">no image</span>'
    else:
        where, size = f"/thumbnails/{row['shard_id']}/{row['sample_id']}", f'width="{row["width"]}" height="{row["height"]}"'
        picture = f'<img{pixelated(row)} src="{where}" alt="{prompt}" loading="lazy" {size}>'
    value = f'<span class="score">{text(short(row[score]))}</span> ' if row.get(score) is not None else ""
    said = "<br>" if brief else f'<p title="{prompt}">{prompt}</p>'
    return (
        f'<figure{kind}><a href="{text(target)}">{picture}</a><figcaption>{value}<span class="{row["status"]}">{verdict(row)}</span>'
        f'{said}<span class="soft">{text(foot)}</span></figcaption></figure>'
    )


def pixelated(row: Mapping[str, Any]) -> str:
    """Class of a small image, which is enlarged without blurring."""
    return ' class="small"' if max(row["width"], row["height"]) <= SMALL_PX else ""


def verdict(row: Mapping[str, Any]) -> str:
    """Its reason if it has one, else its status, as HTML."""
    return text((row["reason"] or row["status"]).replace("_", " "))


def short(score: Any) -> str:
    """A score, so that many of them can be compared."""
    return f"{score:.3f}" if isinstance(score, float) and abs(score) < 1000 else shown(score)


def shown(value: Any) -> str:
    """A value of a column."""
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case float():
            return "not a number" if math.isnan(value) else f"{value:.6g}"
        case list():
            return ", ".join(map(shown, value))
    return str(value)
