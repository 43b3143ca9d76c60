"""``promptmill audit``: what the filter did to the data. Kept share by class, tag and setting, diversity, distributions of scores.

Failed draws are not counted: nothing was kept or rejected there. Diversity is the mean share of the perceptual hash's
bits in which two images of a group differ, over all pairs; a filter that lowers it much narrows the data. With the features of
``promptmill embed`` there are the mean distance of two images by their features, and the Vendi score: how many different images a
group is worth, which falls with their number too.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs.embeddings import read_features
from jobs.judged import added_scorers
from jobs.query import query
from jobs.run_dir import RunDir
from pipeline.metrics import mean_distance, vendi_score
from schemas.config import SAMPLING_COLUMNS

MOST_VALUES = 50  # of a tag or setting; one with more is an id rather than a class
SETTINGS = ("label", "model", "scheduler", *SAMPLING_COLUMNS)
MOST_COMPARED = 20_000  # images
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Images that share a value. ``differing_bits`` is None for fewer than two images, ``distance`` and ``vendi`` without features too.

    Of a group with more than ``MOST_COMPARED`` images the two are those of an even sample.
    """

    by: str
    value: str
    images: int
    kept: int
    share: float
    differing_bits: float | None
    differing_bits_kept: float | None
    distance: float | None
    distance_kept: float | None
    vendi: float | None
    vendi_kept: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Quantiles of a score (``QUANTILES``), of all images or of those kept; NaN left out."""

    score: str
    of: str
    images: int
    quantiles: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """All of it. The first group is the whole run."""

    groups: tuple[Group, ...]
    scores: tuple[Distribution, ...]


def audit(path: str | Path) -> Audit:
    """Examine the verdicts that hold now. Raises UserError."""
    run = RunDir.open(path)
    scorers = [*run.job.scorers, *added_scorers(run.store)]
    columns = ", ".join([*(f"{name}::varchar as {name}" for name in SETTINGS), *(f"{name}_score" for name in scorers)])
    sql = f"select sample_id, status = 'accepted' as kept, phash, tags, {columns} from metadata where status != 'failed'"  # noqa: S608 - names of columns
    table = query([run.store.root], sql)
    kept = np.array(table["kept"].to_pylist(), dtype=bool)
    bits = _bits(table["phash"].to_pylist())
    features = read_features(run, run.markers(), table["sample_id"].to_pylist())
    groups = [_group("run", "", np.arange(len(kept)), kept, bits, features)]
    for by, values in _partitions(table).items():
        groups += [_group(by, value, np.array(rows), kept, bits, features) for value, rows in sorted(values.items())]
    scores = [one for name in scorers for one in _distributions(name, table[f"{name}_score"].to_pylist(), kept)]
    return Audit(groups=tuple(groups), scores=tuple(scores))


def to_json(found: Any) -> str:
    """All fields under their own names."""
    return json.dumps(asdict(found), ensure_ascii=False, indent=1)


def _partitions(table: Any) -> dict[str, dict[str, list[int]]]:
    """Row numbers by value, for labels always, for settings and tags that have a few values."""
    found: dict[str, dict[str, list[int]]] = {}
    for name in SETTINGS:
        found[name] = defaultdict(list)
        for row, value in enumerate(table[name].to_pylist()):
            if value is not None:
                found[name][value].append(row)
    for row, tags in enumerate(table["tags"].to_pylist()):
        for key, value in tags:
            found.setdefault(f"tags.{key}", defaultdict(list))[value].append(row)
    return {by: values for by, values in found.items() if (by == "label" and values) or 2 <= len(values) <= MOST_VALUES}


def _group(by: str, value: str, rows: np.ndarray, kept: np.ndarray, bits: np.ndarray, features: np.ndarray | None) -> Group:
    chosen = rows[kept[rows]]
    share = len(chosen) / len(rows) if len(rows) else 0.0
    common = {"by": by, "value": value, "images": len(rows), "kept": len(chosen), "share": share}
    return Group(
        **common,
        differing_bits=_differing(bits[rows]),
        differing_bits_kept=_differing(bits[chosen]),
        distance=_measured(mean_distance, features, rows),
        distance_kept=_measured(mean_distance, features, chosen),
        vendi=_measured(vendi_score, features, rows),
        vendi_kept=_measured(vendi_score, features, chosen),
    )


def _measured(measure: Callable[[np.ndarray], float], features_ND: np.ndarray | None, rows: np.ndarray) -> float | None:
    if features_ND is None:
        return None
    rows = rows[features_ND[rows].any(axis=1)]
    if len(rows) < 2:
        return None
    return measure(features_ND[rows[:: math.ceil(len(rows) / MOST_COMPARED)]])


def _bits(phashes: list[str]) -> np.ndarray:
    """uint8 (N, 64)."""
    data = np.frombuffer(bytes.fromhex("".join(phashes)), dtype=np.uint8).reshape(-1, 8)
    return np.unpackbits(data, axis=1)


def _differing(bits_NB: np.ndarray) -> float | None:
    """Mean over all pairs, without making them: of n images, k of which have a bit, k (n - k) pairs differ in it."""
    n = len(bits_NB)
    if n < 2:
        return None
    ones = bits_NB.sum(axis=0, dtype=np.int64)
    return float((ones * (n - ones)).sum() / (n * (n - 1) / 2 * bits_NB.shape[1]))


def _distributions(name: str, values: list[float | None], kept: np.ndarray) -> list[Distribution]:
    score = np.array([math.nan if value is None else value for value in values])
    found = []
    for of, mask in (("all", np.ones(len(kept), dtype=bool)), ("kept", kept)):
        told = score[mask & ~np.isnan(score)]
        if len(told):
            quantiles = tuple(round(float(value), 6) for value in np.quantile(told, QUANTILES))
            found.append(Distribution(score=name, of=of, images=len(told), quantiles=quantiles))
    return found
