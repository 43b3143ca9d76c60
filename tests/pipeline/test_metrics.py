"""The figures are those of the papers' definitions, written out in loops; and behave at the ends."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from pipeline import metrics
from pipeline.metrics import (
    classifier_accuracy,
    frechet_distance,
    kernel_distance,
    mean_distance,
    precision_recall_density_coverage,
    vendi_score,
)

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


@pytest.mark.parametrize("made", [MADE, MADE[:4], REAL], ids=["more images than features", "fewer", "the same"])
def test_the_frechet_distance_is_that_of_the_definition(made: np.ndarray) -> None:
    real_cov, made_cov = np.cov(REAL, rowvar=False), np.cov(made, rowvar=False)
    squares = np.linalg.eigvals(real_cov @ made_cov).astype(np.complex128)  # the trace of a root is the sum of the roots of the eigenvalues
    expected = ((REAL.mean(0) - made.mean(0)) ** 2).sum() + np.trace(real_cov + made_cov) - 2 * np.real(np.sqrt(squares)).sum()
    assert frechet_distance(REAL, made) == pytest.approx(expected, abs=1e-6)
    if len(made) > 6:
        root = sqrtm(real_cov @ made_cov)
        assert np.real(np.trace(root)) == pytest.approx(np.real(np.sqrt(squares)).sum())


def test_the_frechet_distance_of_normal_distributions_is_the_known_one() -> None:
    one, other = np.random.default_rng(1).normal(size=(2, 40_000, 3))
    assert frechet_distance(one, 2 * other + [3, 0, 4]) == pytest.approx(25 + 3 * (2 - 1) ** 2, rel=0.02)
    assert frechet_distance(one, other) < 0.001


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


def test_the_mean_distance_is_that_of_all_pairs_and_no_matter_of_their_number() -> None:
    pairs = [1 - x @ y / np.linalg.norm(x) / np.linalg.norm(y) for i, x in enumerate(MADE) for y in MADE[:i]]
    assert mean_distance(MADE) == pytest.approx(np.mean(pairs))
    assert mean_distance(np.eye(7)) == mean_distance(5 * np.eye(3)) == pytest.approx(1)
    assert mean_distance(np.repeat(MADE[:1], 9, axis=0)) == pytest.approx(0, abs=1e-12)


def test_a_classifier_learns_what_can_be_told_apart_and_nothing_else() -> None:
    label = RNG.integers(0, 3, 600)
    features = RNG.normal(size=(600, 8)) + 6 * np.eye(8)[label]
    halves = (features[:300], label[:300]), (features[300:], label[300:])
    assert classifier_accuracy(*halves, classes=3) > 0.98
    shuffled = (features[:300], RNG.permutation(label[:300]))
    assert classifier_accuracy(shuffled, halves[1], classes=3) < 0.6
    assert classifier_accuracy(*halves, classes=3) == classifier_accuracy(*halves, classes=3)
