"""What a report shows, asked of the run by SQL; pixels are read for the few images of the galleries only."""

import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import yaml
from PIL import Image

from jobs.judged import added_scorers, metadata_sources, read_judged
from jobs.query import query
from jobs.report.alike import Alike, Group, find_alike
from jobs.rows import Rows
from jobs.run_dir import RunDir
from jobs.selection import Selection, select
from jobs.status import Ask, Status, status
from schemas.config import SAMPLING_COLUMNS, FilterConfig
from schemas.errors import QueryError

BINS = 40
MOST_VALUES = 50  # of a tag or setting; one with more is an id rather than a class
MOST_FAILURES = 20
IMAGES_PER_GALLERY = 12
THUMBNAIL_PX = 192
MANY_FILES = 500  # of metadata
SETTINGS = ("label", "scheduler", *SAMPLING_COLUMNS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Counts of a score in ``BINS`` equal bins from ``low`` to ``high``; NaN counts for itself. ``limits`` are those of the rules."""

    score: str
    low: float
    high: float
    kept: Sequence[int]
    rejected: Sequence[int]
    unknown: int
    limits: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Images that share a value of a column or tag, and how many of them were accepted."""

    value: str
    images: int
    kept: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One image of a gallery; ``webp`` is a thumbnail."""

    webp: bytes
    row: Mapping[str, Any]
    score: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """A few images, and which."""

    title: str
    meaning: str
    pictures: Sequence[Picture]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookalikes:
    """What one measure found to look alike, the pictures of each group with how near they are to its first."""

    found: Alike
    groups: Sequence[tuple[Group, Sequence[Picture]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Draws that failed for one reason, and what one of them said."""

    reason: str
    draws: int
    error: str
    prompt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All of it."""

    status: Status
    model: str
    revision: str
    rules: str
    settings: str
    versions: Mapping[str, str]
    histograms: Sequence[Histogram]
    shares: Mapping[str, Sequence[Share]]
    galleries: Sequence[Gallery]
    failures: Sequence[Failure]
    alike: Sequence[Lookalikes] = ()


def gather(run: RunDir) -> Facts:
    """Everything, as it stands now. Raises UserError."""

    ask = _asker(run)
    facts, rules = gather_counts(run, ask), rules_now(run)
    scorers = [*run.job.scorers, *added_scorers(run.store)]
    scorer = scorers[0] if scorers else None
    galleries, alike = _galleries(ask, scorer, rules), find_alike(run, ask, rules, scorer)
    groups = [ids for *_, ids in galleries] + [group.sample_ids for found in alike for group in found.groups]
    pictures = _pictures(run, chain.from_iterable(groups), f"{scorer}_score" if scorer else None)
    return replace(
        facts,
        galleries=[Gallery(title=title, meaning=meaning, pictures=[pictures[one] for one in ids]) for title, meaning, ids in galleries],
        alike=[
            Lookalikes(found=found, groups=[(group, [pictures[one] for one in group.sample_ids]) for group in found.groups])
            for found in alike
        ],
    )


def _asker(run: RunDir) -> Ask:
    """Answers SQL. Of many small files, which take milliseconds each, all rows are read before the first question, if memory holds them."""
    if sum(len(names) for names, _, _ in metadata_sources(run, run.markers())) > MANY_FILES:
        with suppress(QueryError):
            return Rows(run, timeout_seconds=None).ask
    return lambda sql: query([run.store.root], sql).to_pylist()


def gather_counts(run: RunDir, ask: Ask) -> Facts:
    """All but the galleries; ``ask`` answers SQL over ``metadata`` and ``failed``. Raises UserError."""
    rules = rules_now(run)
    scorers = [*run.job.scorers, *added_scorers(run.store)]
    config = run.job.config.model_dump(mode="json", exclude_none=True)
    return Facts(
        status=status(run, ask=ask),
        model=run.job.model["name"],
        revision=run.job.model["revision"],
        rules=json.dumps(rules.model_dump(mode="json", exclude_none=True), ensure_ascii=False),
        settings=yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
        versions=run.job.versions,
        histograms=[one for name in scorers if (one := _histogram(ask, name, _limits(rules, name)))],
        shares=_shares(ask),
        galleries=(),
        failures=_failures(ask),
    )


def rules_now(run: RunDir) -> FilterConfig:
    """The rules that judge a run."""
    judged = read_judged(run.store)
    return FilterConfig.model_validate(judged.filter) if judged else run.job.config.filter


def _limits(rules: FilterConfig, scorer: str) -> list[float]:
    bounds = [bound for rule in rules.rules if rule.score == scorer for bound in (rule.min, rule.max)]
    return sorted({bound for bound in bounds if bound is not None})


def _histogram(ask: Ask, name: str, limits: Sequence[float]) -> Histogram | None:
    column = f"{name}_score"
    told = f"{column} is not null and isfinite({column})"
    span = ask(f"select min({column}) low, max({column}) high from metadata where {told}")[0]  # noqa: S608 - a scorer's name
    if span["low"] is None:
        return None
    low, high = float(span["low"]), float(span["high"])
    width = (high - low) / BINS or 1.0
    bin_of = f"least(floor(({column}::double - {low!r}) / {width!r}), {BINS - 1})::int"
    sql = f"select {bin_of} bin, status = 'accepted' kept, count(*) n from metadata where {told} group by all"  # noqa: S608
    counts = {(row["bin"], row["kept"]): row["n"] for row in ask(sql)}
    unknown = ask(f"select count(*) n from metadata where status != 'failed' and not ({told})")[0]["n"]  # noqa: S608
    kept, rejected = ([counts.get((number, of), 0) for number in range(BINS)] for of in (True, False))
    return Histogram(score=name, low=low, high=low + width * BINS, kept=kept, rejected=rejected, unknown=unknown, limits=limits)


def _shares(ask: Ask) -> dict[str, list[Share]]:
    """By label always, by settings and tags that have a few values."""
    settings = ", ".join(f"{{'key': '{name}', 'value': {name}::varchar}}" for name in SETTINGS)
    tags = "list_transform(map_entries(tags), lambda e: {'key': 'tags.' || e.key, 'value': e.value})"
    sql = (
        "select e.key k, e.value v, count(*) n, count(*) filter (where kept) a"  # noqa: S608
        f" from (select unnest(list_concat([{settings}], {tags})) e, status = 'accepted' kept from metadata where status != 'failed')"
        " where e.value is not null group by all order by all"
    )
    found: dict[str, list[Share]] = {}
    for row in ask(sql):
        found.setdefault(row["k"], []).append(Share(value=row["v"], images=row["n"], kept=row["a"]))
    return {by: shares for by, shares in found.items() if by == "label" or 2 <= len(shares) <= MOST_VALUES}


def _galleries(ask: Ask, scorer: str | None, rules: FilterConfig) -> list[tuple[str, str, list[str]]]:
    """Title, meaning and ids of the images of each that has some."""
    score = f"{scorer}_score" if scorer else None
    told = f"and isfinite({score})" if score else ""
    by = f"{score} desc, " if score else ""
    limits = _limits(rules, scorer) if scorer else []
    wanted = [
        ("Best", f"accepted, highest {scorer}" if score else "accepted", f"status = 'accepted' {told}", f"{by}sample_id"),
    ]
    if score and limits:
        near = f"abs({score} - {limits[0]!r}), sample_id"
        wanted.append(("Borderline", f"closest to the limit {limits[0]:g} of {scorer}", f"status != 'failed' {told}", near))
    if score:
        wanted.append(("Worst", f"lowest {scorer} of all", f"status != 'failed' {told}", f"{score}, sample_id"))
    wanted.append(("Rejected", "an even sample of them, each with its reason", "status = 'rejected'", "sample_id"))
    found = []
    for title, meaning, where, order in wanted:
        rows = ask(f"select sample_id from metadata where {where} order by {order} limit {IMAGES_PER_GALLERY}")  # noqa: S608
        found += [(title, meaning, [row["sample_id"] for row in rows])] if rows else []
    return found


def _pictures(run: RunDir, sample_ids: Iterable[str], score: str | None) -> dict[str, Picture]:
    ids = ", ".join(f"'{sample_id}'" for sample_id in sorted(set(sample_ids)))
    found = select(run, Selection(where=f"sample_id in ({ids})", only="all")) if ids else iter(())
    return {row["sample_id"]: _picture(row, data, score) for row, data in found}


def _picture(row: dict[str, Any], data: bytes, score: str | None) -> Picture:
    with Image.open(io.BytesIO(data)) as image:
        small = image.convert("RGB")
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "webp", quality=85)
    value = row[score] if score else None
    return Picture(webp=buffer.getvalue(), row=row, score=None if value is None or math.isnan(value) else value)


def _failures(ask: Ask) -> list[Failure]:
    sql = (
        "select reason, count(*) draws, min_by(error, sample_id) error, min_by(prompt, sample_id) prompt"  # noqa: S608 - a number
        f" from failed group by reason order by draws desc, reason limit {MOST_FAILURES}"
    )
    return [Failure(**row) for row in ask(sql)]
