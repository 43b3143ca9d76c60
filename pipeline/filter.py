"""Scores to verdicts: rules, thresholds, best of a prompt. Pure, so judging again costs nothing.

One judge for both: a shard that was just made (``judge``), and all rows of a run at once (``judge_rows``).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.near_duplicates import near_by_cosine, near_duplicates
from schemas.config import FilterConfig, RuleConfig
from schemas.records import Outcome, Status, Verdict

PASSED = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What rules look at, in the plan's order: arrays of one length.

    ``made`` is false for failed draws. ``scores`` are float32, NaN where a scorer cannot tell. ``groups`` has
    numbers for each ``within`` of a rule, ``prompt`` always; ``conditions`` a bool for each ``where``. ``phash`` and ``lot``, a
    number drawn for each row, are uint64; ``embedding`` is float16 (N, D), all 0 where there is none. These may be left out if no rule
    needs them.
    """

    made: np.ndarray
    is_blank: np.ndarray
    safety_flagged: np.ndarray
    scores: Mapping[str, np.ndarray]
    groups: Mapping[str, np.ndarray]
    conditions: Mapping[str, np.ndarray] = field(default_factory=dict)
    phash: np.ndarray | None = None
    embedding: np.ndarray | None = None
    lot: np.ndarray | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A verdict for each row. ``reason`` counts in ``reasons``, -1 for none; ``rank`` is 0 where there is none."""

    accepted: np.ndarray
    reason: np.ndarray
    reasons: tuple[str, ...]
    rank: np.ndarray


def judge(outcomes: Sequence[Outcome], config: FilterConfig, *, scorers: Sequence[str], rankable: bool) -> list[Verdict]:
    """A verdict for each outcome of a shard.

    ``scorers`` are the names in the configuration's order; the first ranks unless ``config.rank_by`` names
    another. ``rankable`` says that all draws of each prompt are among the outcomes; else ranks stay null.
    """
    found = judge_rows(_rows(outcomes, scorers), config, scorers=scorers if rankable else ())
    return [_verdict(outcome, found, at) for at, outcome in enumerate(outcomes)]


def judge_rows(rows: Rows, config: FilterConfig, *, scorers: Sequence[str]) -> Judgement:
    """Judge rows together. Without ``scorers`` there are no ranks."""
    reasons: list[str] = []
    reason = np.full(len(rows.made), PASSED, dtype=np.int16)

    def reject(which: np.ndarray, why: str) -> None:
        if why not in reasons:
            reasons.append(why)
        reason[which & (reason == PASSED) & rows.made] = reasons.index(why)

    reject(rows.safety_flagged, "safety_checker")
    if config.reject_blank:
        reject(rows.is_blank, "blank")
    for rule in config.rules:
        for which, why in _broken(rule, rows, (reason == PASSED) & rows.made):
            reject(which, rule.reason or why)
    rank_by = config.rank_by or (scorers[0] if scorers else None)
    rank = np.zeros(len(rows.made), dtype=np.int32)
    if rank_by and scorers:
        rank = _ranks(rows.made, rows.groups["prompt"], best_first(rows.scores[rank_by]))
        if config.best_of_prompt:
            passed = (reason == PASSED) & rows.made
            reject(_ranks(passed, rows.groups["prompt"], best_first(rows.scores[rank_by])) > config.best_of_prompt, "not_best_of_prompt")
    return Judgement(accepted=(reason == PASSED) & rows.made, reason=reason, reasons=tuple(reasons), rank=rank)


def best_first(score: np.ndarray) -> np.ndarray:
    """Row numbers by score, highest first; NaN last, then in the plan's order."""
    return np.argsort(np.where(np.isnan(score), np.inf, -score), kind="stable")


def _broken(rule: RuleConfig, rows: Rows, passed: np.ndarray) -> Iterator[tuple[np.ndarray, str]]:
    """Rows that break a rule, and why; ``passed`` are those that broke none before."""
    if rule.where is not None:
        yield ~rows.conditions[rule.where], "where"
        return
    order = best_first(rows.scores[rule.score]) if rule.score else np.arange(len(passed))
    if rule.score and not rule.is_about_likeness:
        yield np.isnan(rows.scores[rule.score]), f"{rule.score}_not_a_number"
        passed = passed & ~np.isnan(rows.scores[rule.score])
    if rule.min is not None:
        yield rows.scores[rule.score or ""] < rule.min, f"{rule.score}_below_min"
    if rule.max is not None:
        yield rows.scores[rule.score or ""] > rule.max, f"{rule.score}_above_max"
    if rule.is_local:
        return
    groups = np.zeros(len(passed), dtype=np.int32) if rule.within == "run" else rows.groups[rule.within]
    if rule.phash_distance is not None:
        assert rows.phash is not None
        yield near_duplicates(rows.phash, groups, order[passed[order]], rule.phash_distance), "near_duplicate"
        return
    if rule.embedding_cosine is not None:
        assert rows.embedding is not None
        yield near_by_cosine(rows.embedding, groups, order[passed[order]], rule.embedding_cosine), "near_duplicate"
        return
    if not rule.score:
        assert rows.lot is not None
        order = np.argsort(rows.lot, kind="stable")
    rank = _ranks(passed, groups, order)
    if rule.keep is not None:
        yield rank > rule.keep, "not_among_best" if rule.score else "over_quota"
    if rule.keep_share is not None:
        size = np.bincount(groups, weights=passed, minlength=1)[groups]
        yield rank > np.ceil(size * rule.keep_share - 1e-9), f"{rule.score}_below_share"


def _ranks(of: np.ndarray, groups: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Rank in its group of each row in ``of``, from 1 in this order; 0 for the others."""
    order = order[of[order]]
    order = order[np.argsort(groups[order], kind="stable")]
    here = groups[order]
    first = np.flatnonzero(np.diff(here, prepend=-1))
    ranks = np.zeros(len(of), dtype=np.int32)
    ranks[order] = np.arange(len(order)) - np.repeat(first, np.diff(first, append=len(order))) + 1
    return ranks


def _rows(outcomes: Sequence[Outcome], scorers: Sequence[str]) -> Rows:
    numbers: dict[str, int] = {}
    return Rows(
        made=np.array([outcome.image is not None for outcome in outcomes], dtype=bool),
        is_blank=np.array([outcome.is_blank for outcome in outcomes], dtype=bool),
        safety_flagged=np.array([bool(outcome.safety_flagged) for outcome in outcomes], dtype=bool),
        scores={name: np.array([outcome.scores.get(name, np.nan) for outcome in outcomes], dtype=np.float32) for name in scorers},
        groups={"prompt": np.array([numbers.setdefault(outcome.draw.prompt_id, len(numbers)) for outcome in outcomes], dtype=np.int32)},
    )


def _verdict(outcome: Outcome, found: Judgement, at: int) -> Verdict:
    if outcome.image is None:
        return Verdict(status=Status.FAILED, reason=(outcome.error or "unknown").split(":", 1)[0])
    reason = None if found.reason[at] == PASSED else found.reasons[found.reason[at]]
    rank = int(found.rank[at]) or None
    status = Status.REJECTED if reason else Status.ACCEPTED
    return Verdict(status=status, reason=reason, rank_in_prompt=rank, is_best=None if rank is None else rank == 1)
