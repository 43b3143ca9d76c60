"""Facts to one HTML page: no script, no network, no file beside it. All text of prompts and labels is escaped where it enters."""

import base64
import html
import shlex
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from jobs.report.alike import Alike, Group
from jobs.report.facts import Facts, Failure, Gallery, Histogram, Lookalikes, Picture, Share
from jobs.status import Reason, Status

STYLE = Path(__file__).with_name("style.css")
WIDTH, HEIGHT, FOOT, HEAD = 520, 150, 20, 16
SMALL_PX = 128  # images up to this size are enlarged without blurring
Link = Callable[[str, object, str], str]  # column or tags.NAME, value of it, HTML -> HTML that may lead to the rows with that value

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"  # a browser would refuse a script even if one came through


def render(facts: Facts) -> str:
    """The whole page."""
    title = Path(facts.status.root).name
    return document(title, [f"<h1>{text(title)}</h1>", *sections(facts)])


def sections(facts: Facts, link: Link = lambda column, value, shown: shown) -> list[str]:
    """What stands under the title, as HTML."""
    made_by = f"{text(facts.model)} @ {text(facts.revision)} · job {text(facts.status.fingerprint)} · {facts.status.state}"
    shares = "".join(_shares(by, of, link) for by, of in facts.shares.items())
    return [
        f'<p class="lead">{made_by}</p>',
        _numbers(facts.status, link),
        _funnel(facts.status, link),
        *_section("Scores", [f'<div class="scores">{"".join(map(_histogram, facts.histograms))}</div>'] if facts.histograms else []),
        *(part for gallery in facts.galleries for part in _gallery(gallery)),
        *_section("Look alike", [part for one in facts.alike for part in _lookalikes(one, facts.status.root)]),
        *_section("What was kept", [f'<div class="grid">{shares}</div>'] if shares else []),
        *_section("Failures", [_failures(facts.failures, link)] if facts.failures else []),
        *_section("Time", [_time(facts.status)] if facts.status.stage_seconds else []),
        *_section("Settings", [_settings(facts)]),
    ]


def document(title: str, body: Sequence[str], *, policy: str = POLICY, style: str = "") -> str:
    """HTML parts as one page, in the report's style and what is added to it."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{text(title)}</title>\n'
        f"<style>\n{STYLE.read_text()}{style}</style></head>\n"
        f"<body><main>\n{chr(10).join(body)}\n</main></body></html>\n"
    )


def text(value: object) -> str:
    """Escaped; characters that control, or turn the direction of writing, as visible escapes."""
    shown = (f"\\u{ord(c):04x}" if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in str(value))
    return html.escape("".join(shown))


def alike(found: Alike, groups: Sequence[str]) -> list[str]:
    """What one measure found, and the largest groups as HTML."""
    have = (
        f"{found.repeated:,} of {found.images:,} images have a better one beside them" if found.repeated else "no two images are that near"
    )
    shown = f'<div class="alike">{"".join(groups)}</div>' if groups else ""
    return [f'<p class="soft">By {text(found.measure)}: {have}.</p>', shown]


def alike_group(group: Group, figures: str, foot: str) -> str:
    """Images that look alike, as HTML."""
    more = f", {len(group.sample_ids)} of them shown" if len(group.sample_ids) < group.size else ""
    return f'<div class="card"><h3>{group.size:,} images{more}</h3><div class="pictures few">{figures}</div>{foot}</div>'


def _section(title: str, parts: Sequence[str]) -> list[str]:
    return [f"<h2>{title}</h2>", *parts] if parts else []


def _numbers(status: Status, link: Link) -> str:
    made = status.accepted + status.rejected
    rate = status.images_per_second
    numbers = [
        ("", f"{status.draws_done:,}", f"of {status.draws_planned:,} draws made"),
        ("accepted", f"{status.accepted:,}", link("status", "accepted", "accepted")),
        ("rejected", f"{status.rejected:,}", link("status", "rejected", "rejected")),
        ("failed" if status.failed else "", f"{status.failed:,}", link("status", "failed", "failed")),
        ("", f"{status.accepted / made:.1%}" if made else "–", "of the images kept"),
        ("", f"{rate:.2f}" if rate else "–", "images per second"),
    ]
    cards = "".join(f'<div class="card {kind}"><b>{number}</b>{name}</div>' for kind, number, name in numbers)
    return f'<div class="numbers">{cards}</div>'


def _funnel(status: Status, link: Link) -> str:
    total = sum(reason.draws for reason in status.reasons) or 1
    parts = "".join(f'<i class="{reason.status}" style="width:{reason.draws / total:.3%}"></i>' for reason in status.reasons)
    legend = "".join(
        f'<span><i class="{reason.status}"></i>{_reason(reason, link)} {reason.draws:,} ({reason.draws / total:.1%})</span>'
        for reason in status.reasons
    )
    note = f'<p class="soft">{text(status.note)}</p>' if status.note else ""
    return f'<div class="card" style="margin-top:12px"><div class="bar">{parts}</div><div class="legend">{legend}</div>{note}</div>'


def _reason(found: Reason, link: Link) -> str:
    column, value = ("status", found.status) if found.reason is None else ("reason", found.reason)
    return link(column, value, text(value.replace("_", " ")))


def _histogram(found: Histogram) -> str:
    most = max(one + other for one, other in zip(found.kept, found.rejected, strict=True)) or 1
    step, floor = WIDTH / len(found.kept), HEIGHT - FOOT
    bars = []
    for number, (kept, rejected) in enumerate(zip(found.kept, found.rejected, strict=True)):
        upper, lower = (count / most * (floor - HEAD) for count in (rejected, kept))
        bars += [
            _bar("kept", number * step, floor - lower, step, lower),
            _bar("rejected", number * step, floor - lower - upper, step, upper),
        ]
    span = found.high - found.low or 1.0
    marks = []
    for limit in (limit for limit in found.limits if found.low <= limit <= found.high):
        at = (limit - found.low) / span * WIDTH
        anchor = "end" if at > WIDTH / 2 else "start"
        marks.append(
            f'<line class="limit" x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{floor}"/>'
            f'<text class="limit" x="{at + (-5 if anchor == "end" else 5):.1f}" y="10" text-anchor="{anchor}">limit {limit:g}</text>'
        )
    unknown = f' <span class="soft">· {found.unknown:,} without a score</span>' if found.unknown else ""
    return (
        f'<div class="card"><h3>{text(found.score)}{unknown}</h3><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' aria-label="histogram of {text(found.score)}">{"".join(bars)}<line class="axis" x1="0" x2="{WIDTH}" y1="{floor}" y2="{floor}"/>'
        f'{"".join(marks)}<text x="0" y="{HEIGHT - 5}">{found.low:.3g}</text>'
        f'<text x="{WIDTH}" y="{HEIGHT - 5}" text-anchor="end">{found.high:.3g}</text></svg>'
        '<div class="legend"><span><i class="accepted"></i>accepted</span><span><i class="rejected"></i>rejected</span></div></div>'
    )


def _bar(kind: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{kind}" x="{x + 0.5:.1f}" y="{y:.1f}" width="{width - 1:.1f}" height="{height:.1f}"/>' if height else ""


def _gallery(gallery: Gallery) -> list[str]:
    head = f'{gallery.title} <span class="soft" style="font-weight:400">· {text(gallery.meaning)}</span>'
    return _section(head, [f'<div class="pictures">{"".join(map(_picture, gallery.pictures))}</div>'])


def _lookalikes(one: Lookalikes, root: str) -> list[str]:
    return alike(one.found, [_group(group, pictures, root) for group, pictures in one.groups])


def _group(group: Group, pictures: Sequence[Picture], root: str) -> str:
    """With the command that shows what is in it."""
    figures = "".join(_picture(picture, group.how[picture.row["sample_id"]]) for picture in pictures)
    ids = ", ".join(f"'{sample_id}'" for sample_id in group.sample_ids)
    command = shlex.join(["promptmill", "show", root, "alike.png", "--where", f"sample_id in ({ids})"])
    return alike_group(group, figures, f"<details><summary>To look at them</summary><pre>{text(command)}</pre></details>")


def _picture(picture: Picture, how: str = "") -> str:
    row = picture.row
    small = ' class="small"' if max(row["width"], row["height"]) <= SMALL_PX else ""
    score = f'<span class="score">{picture.score:.3f}</span> ' if picture.score is not None else ""
    verdict = text((row["reason"] or row["status"]).replace("_", " "))
    label = f" · {text(row['label'])}" if row["label"] is not None else ""
    near = f"<b>{how}</b><br>" if how else ""
    return (
        f'<figure><img{small} src="data:image/webp;base64,{base64.b64encode(picture.webp).decode()}" alt="{text(row["prompt"])}">'
        f'<figcaption>{score}<span class="{row["status"]}">{verdict}</span><p title="{text(row["prompt"])}">{text(row["prompt"])}</p>'
        f'<span class="soft">{near}seed {row["seed"]}{label}</span></figcaption></figure>'
    )


def _shares(by: str, shares: Iterable[Share], link: Link) -> str:
    rows = "".join(
        _share(link(by, share.value, text(share.value)), f"{share.kept:,} / {share.images:,}", share.kept / share.images)
        for share in shares
    )
    return f'<div class="card"><h3>{text(by.removeprefix("tags."))}</h3><table>{rows}</table></div>'


def _share(name: str, counts: str, share: float) -> str:
    bar = f'<div class="bar"><i class="accepted" style="width:{share:.2%}"></i></div>'
    return f'<tr><td>{name}</td><td class="right">{counts}</td><td class="right">{share:.0%}</td><td class="share">{bar}</td></tr>'


def _failures(failures: Iterable[Failure], link: Link) -> str:
    rows = "".join(
        f'<tr><td>{link("reason", one.reason, text(one.reason))}</td><td class="right">{one.draws:,}</td>'
        f"<td>{text(one.error)}</td><td>{text(one.prompt)}</td></tr>"
        for one in failures
    )
    head = '<tr><th>reason</th><th class="right">draws</th><th>one of them said</th><th>its prompt</th></tr>'
    return f'<div class="card"><table>{head}{rows}</table></div>'


def _time(status: Status) -> str:
    total = sum(status.stage_seconds.values()) or 1.0
    rows = "".join(_share(text(stage), f"{seconds:,.1f} s", seconds / total) for stage, seconds in status.stage_seconds.items())
    mishaps = f"{status.mishaps.get('shard_retry', 0)} retries, {status.mishaps.get('worker_lost', 0)} workers lost"
    facts = f"{len(status.workers)} workers at the latest start, {status.starts} starts, {mishaps}"
    head = "<h3>Seconds per stage, added up over workers and threads</h3>"
    return f'<div class="card">{head}<table>{rows}</table><p class="soft">{facts}</p></div>'


def _settings(facts: Facts) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    return (
        f'<div class="card"><h3>Rules</h3><pre>{text(facts.rules)}</pre><details><summary>Configuration in full</summary>'
        f'<pre>{text(facts.settings)}</pre></details><p class="soft">{text(versions)}</p></div>'
    )
