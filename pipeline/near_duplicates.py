"""Images that look alike, by the Hamming distance of their perceptual hashes, or by the cosine of their CLIP features.

Two hashes that differ in at most d of their bits agree in at least one of d + 1 bands of bits (Manku, Jain, Das Sarma
2007, "Detecting near-duplicates for web crawling"), so only rows that share a band are compared.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from schemas.errors import UserError

BITS = 64
MOST_PAIRS = 50_000_000  # 8 bytes each
_AT_ONCE = 4_000_000  # comparisons
_BLOCK = 1024


def near_duplicates(phash: np.ndarray, groups: np.ndarray, order: np.ndarray, distance: int) -> np.ndarray:
    """Which rows are near a better row of their group that is kept; all other rows are kept.

    ``phash`` is uint64 (N,), ``groups`` int (N,); ``order`` holds the rows to look at, best first. Raises UserError
    if there are too many pairs.
    """
    return leaders(phash, groups, order, distance) != np.arange(len(phash))


def leaders(phash: np.ndarray, groups: np.ndarray, order: np.ndarray, distance: int) -> np.ndarray:
    """For each row the best one that is kept and that it is near to, or itself; int64 (N,). As ``near_duplicates``."""
    leader = np.arange(len(phash))
    key = np.stack([groups[order].astype(np.uint64), phash[order]], axis=1)
    _, first, same = np.unique(key, axis=0, return_index=True, return_inverse=True)  # of equal hashes the best goes on
    leader[order] = order[first[same.reshape(-1)]]
    rows = order[np.sort(first)]
    pairs = _pairs(phash[rows], groups[rows], distance) if distance else np.empty((0, 2), dtype=np.int32)
    starts = np.flatnonzero(np.diff(pairs[:, 0], prepend=-1))
    for better, worse in zip(pairs[starts, 0], np.split(pairs[:, 1], starts[1:]), strict=False):
        if leader[rows[better]] == rows[better]:
            free = rows[worse][leader[rows[worse]] == rows[worse]]
            leader[free] = rows[better]
    return leader[leader]  # of equal hashes the best may have found a better one


def near_by_cosine(embedding: np.ndarray, groups: np.ndarray, order: np.ndarray, cosine: float) -> np.ndarray:
    """As ``near_duplicates``, for rows whose features, float16 (N, D), have at least this cosine. Rows of zeros are like no other.

    Every better row that is kept is compared: of n images of which k are kept, n * k products. In float64 the sum of products of
    half floats of length 1 has no rounding error, so the answer is the same on every machine.
    """
    drop = np.zeros(len(embedding), dtype=bool)
    drop[order] = True
    by_group = order[np.argsort(groups[order], kind="stable")]
    for rows in np.split(by_group, np.flatnonzero(np.diff(groups[by_group])) + 1):
        kept = np.zeros(0, dtype=np.int64)
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            for better in np.array_split(kept, len(kept) // _BLOCK + 1):
                block = block[~_alike(embedding[block], embedding[better], cosine).any(axis=1)]
            alike_BB = _alike(embedding[block], embedding[block], cosine)
            stays = np.ones(len(block), dtype=bool)
            for at in range(len(block)):
                if stays[at]:
                    stays[at + 1 :] &= ~alike_BB[at, at + 1 :]
            kept = np.concatenate([kept, block[stays]])
        drop[kept] = False
    return drop


def leaders_by_cosine(embedding: np.ndarray, groups: np.ndarray, order: np.ndarray, cosine: float) -> np.ndarray:
    """For each row the best one that is kept and whose features are as close, or itself; int64 (N,). As ``near_by_cosine``."""
    leader, drop = np.arange(len(embedding)), near_by_cosine(embedding, groups, order, cosine)
    for group in np.unique(groups[order[drop[order]]]):
        rows = order[groups[order] == group]
        kept, dropped = rows[~drop[rows]], rows[drop[rows]]
        for start in range(0, len(dropped), _BLOCK):
            block = dropped[start : start + _BLOCK]
            leader[block] = kept[_alike(embedding[block], embedding[kept], cosine).argmax(axis=1)]
    return leader


def _alike(one_ND: np.ndarray, other_MD: np.ndarray, cosine: float) -> np.ndarray:
    one_ND, other_MD = one_ND.astype(np.float64), other_MD.astype(np.float64)
    lengths_NM = np.sqrt((one_ND**2).sum(axis=1))[:, None] * np.sqrt((other_MD**2).sum(axis=1))
    return (one_ND @ other_MD.T >= cosine * lengths_NM) & (lengths_NM > 0)


def _pairs(phash: np.ndarray, groups: np.ndarray, distance: int) -> np.ndarray:
    """Pairs (better, worse) of row numbers within the distance, sorted; int32 (P, 2)."""
    edges = np.linspace(0, BITS, distance + 2).astype(np.uint64)
    bands = [(phash >> low) & np.uint64((1 << int(high - low)) - 1) for low, high in pairwise(edges)]
    found: list[np.ndarray] = []
    total = 0
    for number, band in enumerate(bands):
        for one, other in _sharing(band, groups):
            near = np.bitwise_count(phash[one] ^ phash[other]) <= distance
            one, other = one[near], other[near]
            new = np.ones(len(one), dtype=bool)
            for earlier in bands[:number]:  # pairs that another band has found
                new &= earlier[one] != earlier[other]
            found.append(np.stack([one[new], other[new]], axis=1).astype(np.int32))
            total += len(found[-1])
            if total > MOST_PAIRS:
                raise UserError(
                    f"phash_distance: more than {MOST_PAIRS:,} pairs of images are within {distance} bits; lower it, or set 'within'"
                )
    pairs = np.sort(np.concatenate(found), axis=1) if found else np.empty((0, 2), dtype=np.int32)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def _sharing(band: np.ndarray, groups: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Row numbers of pairs that agree in a band and in their group, so many at once as memory allows."""
    order = np.lexsort((band, groups))
    changed = (np.diff(band[order]) != 0) | (np.diff(groups[order]) != 0)
    ends = np.append(np.flatnonzero(changed) + 1, len(order))
    partners = ends[np.searchsorted(ends, np.arange(len(order)), side="right")] - np.arange(len(order)) - 1  # later rows of the same kind
    cuts = np.searchsorted(np.cumsum(partners), np.arange(_AT_ONCE, partners.sum() + _AT_ONCE, _AT_ONCE), side="left")
    start = 0
    for stop in np.unique(np.minimum(cuts + 1, len(order))):
        counts = partners[start:stop]
        one = np.repeat(np.arange(start, stop), counts)
        step = np.arange(len(one)) - np.repeat(np.cumsum(counts) - counts, counts)
        yield order[one], order[one + 1 + step]
        start = stop
