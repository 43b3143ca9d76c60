"""Scores to verdicts: rules, thresholds, best of a prompt. Pure, so judging again costs nothing."""

import math
from collections import defaultdict
from collections.abc import Sequence

from schemas.config import FilterConfig, RuleConfig
from schemas.records import Outcome, Status, Verdict


def judge(outcomes: Sequence[Outcome], config: FilterConfig, *, scorers: Sequence[str], rankable: bool) -> list[Verdict]:
    """A verdict for each outcome.

    ``scorers`` are the names in the configuration's order; the first ranks unless ``config.rank_by`` names
    another. ``rankable`` says that all draws of each prompt are among the outcomes; else ranks stay null.
    """
    rank_by = config.rank_by or (scorers[0] if scorers else None)
    ranks = _ranks(outcomes, rank_by) if rank_by and rankable else [None] * len(outcomes)
    reasons = [_reason(outcome, config) for outcome in outcomes]
    if config.best_of_prompt:
        reasons = _keep_best(outcomes, reasons, ranks, config.best_of_prompt)
    return [_verdict(outcome, reason, rank) for outcome, reason, rank in zip(outcomes, reasons, ranks, strict=True)]


def _verdict(outcome: Outcome, reason: str | None, rank: int | None) -> Verdict:
    if outcome.image is None:
        code = (outcome.error or "unknown").split(":", 1)[0]
        return Verdict(status=Status.FAILED, reason=code)
    status = Status.REJECTED if reason else Status.ACCEPTED
    return Verdict(status=status, reason=reason, rank_in_prompt=rank, is_best=None if rank is None else rank == 1)


def _reason(outcome: Outcome, config: FilterConfig) -> str | None:
    """Name of the first rule that the image breaks."""
    if outcome.safety_flagged:
        return "safety_checker"
    if config.reject_blank and outcome.is_blank:
        return "blank"
    return next((reason for rule in config.rules if (reason := _broken(rule, outcome))), None)


def _broken(rule: RuleConfig, outcome: Outcome) -> str | None:
    value = outcome.scores.get(rule.score, math.nan)
    if math.isnan(value):
        return f"{rule.score}_not_a_number"
    if rule.min is not None and value < rule.min:
        return f"{rule.score}_below_min"
    if rule.max is not None and value > rule.max:
        return f"{rule.score}_above_max"
    return None


def _ranks(outcomes: Sequence[Outcome], scorer: str) -> list[int | None]:
    """Rank of each image among those of its prompt, 1 for the highest score; NaN last, then by draw number."""
    by_prompt: dict[str, list[int]] = defaultdict(list)
    for index, outcome in enumerate(outcomes):
        if outcome.image is not None:
            by_prompt[outcome.draw.prompt_id].append(index)

    def order(index: int) -> tuple[float, int]:
        value = outcomes[index].scores.get(scorer, math.nan)
        return (math.inf if math.isnan(value) else -value, outcomes[index].draw.draw_index)

    ranks: list[int | None] = [None] * len(outcomes)
    for indices in by_prompt.values():
        for rank, index in enumerate(sorted(indices, key=order), 1):
            ranks[index] = rank
    return ranks


def _keep_best(outcomes: Sequence[Outcome], reasons: Sequence[str | None], ranks: Sequence[int | None], keep: int) -> list[str | None]:
    """Of the images of a prompt that broke no rule, reject all but the ``keep`` best."""
    passing: dict[str, list[int]] = defaultdict(list)
    for outcome, reason, rank in zip(outcomes, reasons, ranks, strict=True):
        if reason is None and rank is not None:
            passing[outcome.draw.prompt_id].append(rank)
    last = {prompt: sorted(found)[:keep][-1] for prompt, found in passing.items()}
    return [
        "not_best_of_prompt" if reason is None and rank is not None and rank > last[outcome.draw.prompt_id] else reason
        for outcome, reason, rank in zip(outcomes, reasons, ranks, strict=True)
    ]
