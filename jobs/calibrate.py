"""A threshold from a small labelled sample: precision and recall against it, and the lowest that is precise enough."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from jobs.judged import added_scorers
from jobs.query import query
from jobs.run_dir import RunDir
from schemas.errors import ConfigError

GOOD = {"1": True, "true": True, "yes": True, "good": True, "0": False, "false": False, "no": False, "bad": False}
SHOWN = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What keeping scores of at least ``threshold`` gives. Precision: good among the kept; recall: kept among the good."""

    threshold: float
    kept: int
    precision: float
    recall: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A point for each distinct score of the sample, from the highest."""

    score: str
    images: int
    points: tuple[Point, ...]

    def threshold_for(self, precision: float) -> Point | None:
        """The point of the largest recall that is at least so precise; None if there is none."""
        enough = [point for point in self.points if point.precision >= precision]
        return max(enough, key=lambda point: point.recall, default=None)

    def shown(self) -> list[Point]:
        """At most ``SHOWN`` points, evenly spread."""
        step = max(1, (len(self.points) - 1) / (SHOWN - 1))
        return [self.points[round(number * step)] for number in range(min(SHOWN, len(self.points)))]


def calibrate(path: str | Path, labels: Path, *, score: str | None = None) -> Calibration:
    """Compare a score with labels. Raises UserError."""
    run = RunDir.open(path)
    scorers = [*run.job.scorers, *added_scorers(run.store)]
    name = score or (scorers[0] if scorers else "")
    if name not in scorers:
        raise ConfigError(f"--score {name}: there is no such scorer; scorers are: {', '.join(scorers) or 'none'}")
    good = read_labels(labels)
    rows = query([run.store.root], f"select sample_id, {name}_score as score from metadata where status != 'failed'").to_pylist()  # noqa: S608
    scores = {row["sample_id"]: row["score"] for row in rows if row["sample_id"] in good}
    unknown = [sample_id for sample_id in good if sample_id not in scores]
    if unknown:
        raise ConfigError(f"{labels}: {len(unknown)} of {len(good)} sample ids are no images of the run, the first is {unknown[0]!r}")
    pairs = [(value, good[sample_id]) for sample_id, value in scores.items() if value is not None and not math.isnan(value)]
    if not any(is_good for _, is_good in pairs):
        raise ConfigError(f"{labels}: no image with a score is labelled good; label some of them")
    return Calibration(score=name, images=len(pairs), points=tuple(_points(pairs)))


def _points(pairs: list[tuple[float, bool]]) -> list[Point]:
    pairs = sorted(pairs, reverse=True)
    total = sum(is_good for _, is_good in pairs)
    points, found = [], 0
    for kept, (value, is_good) in enumerate(pairs, 1):
        found += is_good
        if kept == len(pairs) or pairs[kept][0] < value:
            points.append(Point(threshold=value, kept=kept, precision=found / kept, recall=found / total))
    return points


def read_labels(path: Path) -> dict[str, bool]:
    """A CSV with the columns sample_id and good (1 or 0, true or false, yes or no). Raises ConfigError."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if not {"sample_id", "good"} <= set(reader.fieldnames or ()):
                raise ConfigError(
                    f"{path}: the columns must be sample_id and good; found {', '.join(reader.fieldnames or ()) or 'nothing'}"
                )
            found: dict[str, bool] = {}
            for row in reader:
                sample_id, text = row["sample_id"], (row["good"] or "").strip().lower()
                if text not in GOOD:
                    raise ConfigError(f"{path}:{reader.line_num}: good is {row['good']!r}; write 1 or 0")
                if found.setdefault(sample_id, GOOD[text]) != GOOD[text]:
                    raise ConfigError(f"{path}:{reader.line_num}: {sample_id!r} is labelled good and not good; keep one of the lines")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: is no CSV in UTF-8 ({error}); save it as that") from None
    return found
