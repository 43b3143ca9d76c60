"""The figures are those of the papers' definitions, written out in loops; and behave at the ends."""

import numpy as np
import pytest

from pipeline import metrics
from pipeline.metrics import classifier_accuracy, kernel_distance, precision_recall_density_coverage, vendi_score

RNG = np.random.default_rng(5)
REAL, MADE = RNG.normal(size=(40, 6)), RNG.normal(0.4, 0.8, size=(30, 6))


def radius(points: np.ndarray, index: int, k: int) -> float:
    return sorted(float(np.linalg.norm(points[index] - other)) for at, other in enumerate(points) if at != index)[k - 1]


def by_definition(real: np.ndarray, made: np.ndarray, k: int) -> tuple[float, float, float, float]:
    inside = [[float(np.linalg.norm(x - y)) <= radius(real, i, k) for y in made] for i, x in enumerate(real)]
    recalled = [any(float(np.linalg.norm(x - y)) <= radius(made, j, k) for j, y in enumerate(made)) for x in real]
    precise = [any(row[j] for row in inside) for j in range(len(made))]
    density = sum(sum(row) for row in inside) / (k * len(made))
    return float(np.mean(precise)), float(np.mean(recalled)), density, float(np.mean([any(row) for row in inside]))


@pytest.mark.parametrize("block", [7, 1024])
@pytest.mark.parametrize("k", [1, 3])
def test_neighbourhoods_are_those_of_the_definition(monkeypatch: pytest.MonkeyPatch, k: int, block: int) -> None:
    monkeypatch.setattr(metrics, "BLOCK", block)
    assert precision_recall_density_coverage(REAL, MADE, k=k) == pytest.approx(by_definition(REAL, MADE, k))


def test_sets_far_apart_and_equal_sets_are_the_ends() -> None:
    assert precision_recall_density_coverage(REAL, REAL + 1e3) == (0, 0, 0, 0)
    precision, recall, _, coverage = precision_recall_density_coverage(REAL, REAL)
    assert (precision, recall, coverage) == (1, 1, 1)


@pytest.mark.parametrize("block", [7, 1024])
def test_the_kernel_distance_is_that_of_the_definition(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(metrics, "BLOCK", block)

    def mean(one: np.ndarray, other: np.ndarray, *, same: bool) -> float:
        pairs = [(x @ y / 6 + 1) ** 3 for i, x in enumerate(one) for j, y in enumerate(other) if not same or i != j]
        return float(np.mean(pairs))

    expected = mean(REAL, REAL, same=True) + mean(MADE, MADE, same=True) - 2 * mean(REAL, MADE, same=False)
    assert kernel_distance(REAL, MADE) == pytest.approx(expected)


def test_the_kernel_distance_of_one_distribution_is_about_0() -> None:
    found = [kernel_distance(*np.split(np.random.default_rng(seed).normal(size=(200, 6)), 2)) for seed in range(20)]
    assert abs(np.mean(found)) < 0.02
    assert min(found) < 0 < max(found), "unbiased"
    assert kernel_distance(REAL, REAL + 1) > 0.5


def test_the_vendi_score_is_that_of_the_definition_and_counts_different_images() -> None:
    cosines = np.array([[x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in MADE] for x in MADE])
    shares = [share for share in np.linalg.eigvalsh(cosines / len(MADE)) if share > 1e-12]
    assert vendi_score(MADE) == pytest.approx(np.exp(-sum(share * np.log(share) for share in shares)))
    assert vendi_score(MADE[:4]) == pytest.approx(vendi_score(np.c_[MADE[:4], np.zeros((4, 9))])), "whichever side is smaller"
    assert vendi_score(np.repeat(MADE[:1], 9, axis=0)) == pytest.approx(1)
    assert vendi_score(3 * np.eye(7)) == pytest.approx(7)
    assert vendi_score(np.repeat(np.eye(7), 5, axis=0)) == pytest.approx(7), "copies add nothing"


def test_a_classifier_learns_what_can_be_told_apart_and_nothing_else() -> None:
    label = RNG.integers(0, 3, 600)
    features = RNG.normal(size=(600, 8)) + 6 * np.eye(8)[label]
    halves = (features[:300], label[:300]), (features[300:], label[300:])
    assert classifier_accuracy(*halves, classes=3) > 0.98
    shuffled = (features[:300], RNG.permutation(label[:300]))
    assert classifier_accuracy(shuffled, halves[1], classes=3) < 0.6
    assert classifier_accuracy(*halves, classes=3) == classifier_accuracy(*halves, classes=3)
