"""Groups of images that look alike, by the hash that every image has and by CLIP features where the run has them.

The measure is that of the rule that judges the run by it, else a usual one; nothing is rejected here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.embeddings import read_encoder, read_features
from jobs.run_dir import RunDir
from jobs.selection import expression
from jobs.status import Ask
from pipeline.near_duplicates import leaders, leaders_by_cosine
from schemas.config import FilterConfig, RuleConfig
from schemas.errors import UserError

USUAL = (RuleConfig(phash_distance=4), RuleConfig(embedding_cosine=0.98))
MOST_HASHES = 200_000  # images whose hashes are compared; of more, only equal ones are found
MOST_FEATURES = 20_000  # images whose features are
GROUPS = 6  # that are shown
IMAGES_PER_GROUP = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Images that are near the first of them, and how near; ``size`` counts those that are not shown, too."""

    sample_ids: Sequence[str]
    how: Mapping[str, str]
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Alike:
    """What one measure says of a run: ``repeated`` images have a better one beside them, of ``images`` that were compared."""

    measure: str
    images: int
    repeated: int
    groups: Sequence[Group]


def find_alike(run: RunDir, ask: Ask, rules: FilterConfig, scorer: str | None) -> list[Alike]:
    """The largest groups by each measure; ``ask`` answers SQL over ``metadata``.

    ``scorer`` tells which image of a group is best, after whether it was accepted. Raises UserError.
    """
    images = ask("select count(*) as n from metadata where status != 'failed'")[0]["n"]
    if not images:
        return []
    by_hash, by_features = (
        next((rule for rule in rules.rules if getattr(rule, kind) is not None), usual)
        for kind, usual in zip(("phash_distance", "embedding_cosine"), USUAL, strict=True)
    )
    try:
        found = [_by_hash(run, ask, by_hash, scorer, images, (by_hash.phash_distance or 0) if images <= MOST_HASHES else 0)]
    except UserError:  # too many pairs
        found = [_by_hash(run, ask, by_hash, scorer, images, 0)]
    if read_encoder(run.store) is not None and images <= MOST_FEATURES:
        found.append(_by_features(run, ask, by_features, scorer))
    return found


def _by_hash(run: RunDir, ask: Ask, rule: RuleConfig, scorer: str | None, images: int, distance: int) -> Alike:
    where = "phash is not null" if distance else "phash in (select phash from metadata group by 1 having count(*) > 1)"
    rows = ask(_rows(run, rule, scorer, where))
    phash = np.array([int(row["phash"], 16) for row in rows], dtype=np.uint64)
    leader = leaders(phash, _parts(rows), np.arange(len(rows)), distance)

    def how(row: int) -> str:
        bits = int(np.bitwise_count(phash[row] ^ phash[leader[row]]))
        return f"{bits} of 64 bits differ" if bits else "the same hash"

    measure = f"hashes that differ in at most {distance} of 64 bits" if distance else "equal hashes"
    return _groups([row["sample_id"] for row in rows], leader, f"{measure}{_within(rule)}", images, how)


def _by_features(run: RunDir, ask: Ask, rule: RuleConfig, scorer: str | None) -> Alike:
    rows, cosine = ask(_rows(run, rule, scorer, "true")), rule.embedding_cosine or 1.0
    names = [row["sample_id"] for row in rows]
    features_ND = read_features(run, run.markers(), names)
    assert features_ND is not None  # there is an encoder
    leader = leaders_by_cosine(features_ND, _parts(rows), np.arange(len(names)), cosine)

    def how(row: int) -> str:
        one, other = features_ND[row].astype(np.float64), features_ND[leader[row]].astype(np.float64)
        return f"cosine {one @ other / np.sqrt((one @ one) * (other @ other)):.3f}"

    measure = f"CLIP features with a cosine of at least {cosine:g}{_within(rule)}"
    return _groups(names, leader, measure, int(features_ND.any(axis=1).sum()), how)


def _rows(run: RunDir, rule: RuleConfig, scorer: str | None, where: str) -> str:
    """SQL for images, best first; those of one part may be alike."""
    part = "0" if rule.within == "run" else expression(run, "prompt_id" if rule.within == "prompt" else rule.within)
    best = f"nullif({scorer}_score, 'nan') desc nulls last, " if scorer else ""
    return (
        f"select sample_id, phash, dense_rank() over (order by {part})::bigint as part from metadata"  # noqa: S608 - no text of a user
        f" where status != 'failed' and {where} order by status, {best}sample_id"
    )


def _parts(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    return np.array([row["part"] for row in rows], dtype=np.int64)


def _groups(names: Sequence[str], leader: np.ndarray, measure: str, images: int, how: Callable[[int], str]) -> Alike:
    rows, sizes = np.unique(leader, return_counts=True)
    largest = [row for row in np.lexsort((rows, -sizes)) if sizes[row] > 1][:GROUPS]
    groups = []
    for at in largest:
        others = [int(row) for row in np.flatnonzero(leader == rows[at]) if row != rows[at]][: IMAGES_PER_GROUP - 1]
        head = names[int(rows[at])]
        near = {names[row]: how(row) for row in others}
        groups.append(Group(sample_ids=[head, *near], how={head: "the best of them", **near}, size=int(sizes[at])))
    return Alike(measure=measure, images=images, repeated=int((leader != np.arange(len(leader))).sum()), groups=groups)


def _within(rule: RuleConfig) -> str:
    return "" if rule.within == "run" else f", within each {rule.within.removeprefix('tags.')}"
