"""A verdict follows from stored scores alone; failures are no rejections."""

import math

import pytest

from pipeline.filter import judge
from schemas.config import FilterConfig, RuleConfig
from schemas.records import Outcome
from tests.fakes import make_draw, make_outcome

RULES = FilterConfig(rules=[RuleConfig(score="bright", min=0.3, max=0.8)])


def scored(*values: float, prompt: int = 0) -> list[Outcome]:
    return [make_outcome(make_draw(prompt, draw_index=index), scores={"bright": value}) for index, value in enumerate(values)]


def verdicts(outcomes: list[Outcome], config: FilterConfig = RULES, *, rankable: bool = True) -> list[tuple]:
    found = judge(outcomes, config, scorers=["bright"], rankable=rankable)
    return [(v.status.value, v.reason, v.rank_in_prompt, v.is_best) for v in found]


def test_bounds_are_inclusive_and_the_first_broken_rule_is_the_reason() -> None:
    assert [v[:2] for v in verdicts(scored(0.3, 0.8, 0.29, 0.81, math.nan))] == [
        ("accepted", None),
        ("accepted", None),
        ("rejected", "bright_below_min"),
        ("rejected", "bright_above_max"),
        ("rejected", "bright_not_a_number"),
    ]


def test_a_failed_draw_is_failed_whatever_the_rules_say() -> None:
    failed = make_outcome(image=None, error="not_finite: NaN", scores={})
    assert verdicts([failed]) == [("failed", "not_finite", None, None)]


def test_blank_and_flagged_images_are_rejected() -> None:
    blank, flagged = make_outcome(is_blank=True), make_outcome(safety_flagged=True)
    assert [v[:2] for v in verdicts([blank, flagged])] == [("rejected", "blank"), ("rejected", "safety_checker")]
    kept = FilterConfig(reject_blank=False)
    assert verdicts([blank], kept)[0][0] == "accepted"


def test_ranks_count_within_a_prompt_with_nan_last_and_ties_by_draw() -> None:
    outcomes = scored(0.5, math.nan, 0.7, 0.5) + scored(0.1, prompt=1)
    assert [v[2] for v in verdicts(outcomes)] == [2, 4, 1, 3, 1]
    assert [v[3] for v in verdicts(outcomes)] == [False, False, True, False, True]


def test_ranks_are_null_where_a_prompt_is_split() -> None:
    assert [v[2:] for v in verdicts(scored(0.5, 0.6), rankable=False)] == [(None, None)] * 2


@pytest.mark.parametrize(
    ("keep", "accepted"), [(1, [False, True, False, False]), (2, [True, True, False, False]), (9, [True, True, False, True])]
)
def test_best_of_prompt_counts_only_images_that_pass_the_rules(keep: int, accepted: list[bool]) -> None:
    config = RULES.model_copy(update={"best_of_prompt": keep})
    found = verdicts(scored(0.5, 0.7, 0.9, 0.4), config)
    assert [status == "accepted" for status, *_ in found] == accepted
    assert found[2][1] == "bright_above_max"


def test_no_scorers_means_no_ranks() -> None:
    found = judge([make_outcome(scores={})], FilterConfig(), scorers=[], rankable=True)
    assert found[0].rank_in_prompt is None
