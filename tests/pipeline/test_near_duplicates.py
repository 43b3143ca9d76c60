"""Near-duplicates are those that comparing every image with every kept one finds, only faster."""

import time

import numpy as np
import pytest

from pipeline import near_duplicates as module
from pipeline.near_duplicates import leaders, leaders_by_cosine, near_by_cosine, near_duplicates
from schemas.errors import UserError


def by_comparing_all(phash: np.ndarray, groups: np.ndarray, order: np.ndarray, distance: int) -> np.ndarray:
    drop, kept = np.zeros(len(phash), dtype=bool), []
    for row in order:
        if any(groups[row] == groups[one] and (int(phash[row]) ^ int(phash[one])).bit_count() <= distance for one in kept):
            drop[row] = True
        else:
            kept.append(row)
    return drop


def hashes(rng: np.random.Generator, count: int, flips: int) -> np.ndarray:
    found = rng.integers(0, 2**64, 40, dtype=np.uint64)[rng.integers(0, 40, count)]
    for _ in range(flips):
        found ^= np.where(rng.random(count) < 0.5, np.uint64(1) << rng.integers(0, 64, count, dtype=np.uint64), np.uint64(0))
    return found


@pytest.mark.parametrize("distance", [0, 1, 4, 8, 16])
def test_the_same_are_dropped_as_by_comparing_all(distance: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", 100)
    rng = np.random.default_rng(distance)
    phash, groups, order = hashes(rng, 300, (distance + 1) // 2 + 1), rng.integers(0, 3, 300), rng.permutation(300)[:250]
    expected = by_comparing_all(phash, groups, order, distance)
    assert expected.any()
    assert not expected[order].all()
    np.testing.assert_array_equal(near_duplicates(phash, groups, order, distance), expected)


def test_what_is_dropped_leads_to_a_better_one_of_its_group_that_is_kept_and_near() -> None:
    rng = np.random.default_rng(3)
    phash, groups, order = hashes(rng, 300, 3), rng.integers(0, 3, 300), rng.permutation(300)[:250]
    features_ND = rng.normal(size=(40, 8))[rng.integers(0, 40, 300)] + rng.normal(size=(300, 8)) / 4
    features_ND = (features_ND / np.linalg.norm(features_ND, axis=1)[:, None]).astype(np.float16)
    rank = {int(row): number for number, row in enumerate(order)}
    bits = np.bitwise_count(phash[:, None] ^ phash)
    cosines = features_ND.astype(float) @ features_ND.astype(float).T
    for leader, near, drop in (
        (leaders(phash, groups, order, 4), bits <= 4, near_duplicates(phash, groups, order, 4)),
        (leaders_by_cosine(features_ND, groups, order, 0.95), cosines >= 0.949, near_by_cosine(features_ND, groups, order, 0.95)),
    ):
        assert drop.any()
        np.testing.assert_array_equal(leader != np.arange(300), drop)
        for row in np.flatnonzero(drop):
            at = leader[row]
            assert not drop[at]
            assert near[row, at]
            assert groups[row] == groups[at]
            assert rank[int(at)] < rank[int(row)]


def test_a_row_that_resembles_only_a_dropped_one_is_kept() -> None:
    phash = np.array([0b0, 0b11, 0b1111], dtype=np.uint64)
    assert near_duplicates(phash, np.zeros(3, int), np.arange(3), 2).tolist() == [False, True, False]


def test_nothing_to_look_at_drops_nothing() -> None:
    assert near_duplicates(np.zeros(3, np.uint64), np.zeros(3, int), np.empty(0, int), 4).tolist() == [False] * 3


def test_too_many_pairs_are_refused_before_memory_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_PAIRS", 1000)
    with pytest.raises(UserError, match="more than 1,000 pairs of images are within 16 bits; lower it, or set 'within'"):
        near_duplicates(np.arange(200, dtype=np.uint64), np.zeros(200, int), np.arange(200), 16)


def test_many_rows_take_seconds() -> None:
    rng = np.random.default_rng(0)
    start = time.process_time()
    found = near_duplicates(rng.integers(0, 2**64, 30_000, dtype=np.uint64), np.zeros(30_000, int), np.arange(30_000), 4)
    assert time.process_time() - start < 5
    assert found.sum() < 10
