"""``promptmill evaluate``: what the images of a run are worth as training data, against a folder of real ones.

Half of the real images are for the test. A classifier learns the classes from the other real half, from the run's accepted
images, and from all of its images, of each equally many, and is asked about the test half; each of the three sets is
compared with the test half by its CLIP features too. The real set's row says what is within reach.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jobs import open_run
from jobs.encoder import load_encoder
from jobs.export.paths import folder_name
from jobs.query import query
from jobs.real_features import real_features
from jobs.run_dir import RunDir
from jobs.selection import Selection, expression, value_of
from pipeline.metrics import classifier_accuracy, frechet_distance, kernel_distance, precision_recall_density_coverage, vendi_score
from schemas.errors import ConfigError

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
NEIGHBOURS = 5
MOST = 5000  # images of a set that are looked at
SAMPLES = 10  # of a set that is larger than the smallest
BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One set of images against the real test half; ``vendi`` is of the set alone.

    ``accuracy`` is that of a classifier that learned from this set. Of a set with more than ``images`` each figure is the mean over
    ``SAMPLES`` samples of that many; ``spread`` is then the standard deviation of their accuracies, else None.
    """

    name: str
    images: int
    accuracy: float
    spread: float | None
    precision: float
    recall: float
    density: float
    coverage: float
    frechet_distance: float
    kernel_distance: float
    vendi: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """All of it; ``left_out`` are classes that only one side has, ``encoder`` the version of the CLIP model."""

    encoder: str
    classes: tuple[str, ...]
    left_out: tuple[str, ...]
    tested_on: int
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class _Set:
    features_ND: np.ndarray
    label_N: np.ndarray


def evaluate(
    path: str | Path, against: Path, *, label: str = "label", where: str = "true", clip: str | None = None, limit: int | None = None
) -> Evaluation:
    """Compare a run with ``against``, a folder that holds a folder of images per class.

    ``label`` is the column or tag whose values name the classes, ``where`` a condition on the run's images, ``clip`` an encoder other than
    the run's own, ``limit`` how many images of each set to learn from, if not as many as the smallest has. Raises UserError.
    """
    run = RunDir.open(path)
    column = expression(run, label)
    folders = _folders(against)
    counts = f"select distinct {column} v from metadata where status != 'failed' and {column} is not null"  # noqa: S608
    names = sorted(map(str, query([run.store.root], counts)["v"].to_pylist()))
    classes = [name for name in names if folder_name(name) in folders]
    if len(classes) < 2:
        raise ConfigError(
            f"--against {against}: its folders and the values of {label} have {len(classes)} classes in common; two are needed"
        )
    encoder = load_encoder(run, clip)
    numbers = {name: number for number, name in enumerate(classes)}
    halves = _halves([(file, numbers[name]) for name in classes for file in folders[folder_name(name)]])
    condition = f"({where}\n) and {column} is not null"
    sets = {name: _real(run, encoder, half) for name, half in zip(("real", "test"), halves, strict=True)}
    for name, only in (("accepted", "accepted"), ("all, unfiltered", "all")):
        drawn = _drawn(run, Selection(where=condition, only=only), label, numbers)
        sets[name] = _features(encoder, drawn)
    test = sets.pop("test")
    size = min(len(one.label_N) for one in (*sets.values(), test))
    size = min(size, limit) if limit else size
    if size <= NEIGHBOURS:
        raise ConfigError(f"--against {against}: the smallest set has {size} images; more than {NEIGHBOURS} are needed on each side")
    rows = tuple(_row(name, _samples(one, size), test, len(classes)) for name, one in sets.items())
    left_out = sorted((set(folders) - {folder_name(name) for name in classes}) | (set(names) - set(classes)))
    return Evaluation(encoder=encoder.version, classes=tuple(classes), left_out=tuple(left_out), tested_on=len(test.label_N), rows=rows)


def to_json(found: Evaluation) -> str:
    """All fields under their own names."""
    return json.dumps(asdict(found), ensure_ascii=False, indent=1)


def _folders(against: Path) -> dict[str, list[Path]]:
    if not against.is_dir():
        raise ConfigError(f"--against {against}: is no folder; give one that holds a folder of real images per class")
    found = {
        folder.name: sorted(file for file in folder.iterdir() if file.suffix.lower() in ENDINGS)
        for folder in sorted(against.iterdir())
        if folder.is_dir()
    }
    return {name: files for name, files in found.items() if files}


def _halves(files: list[tuple[Path, int]]) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]]]:
    """Real images to learn from, and those for the test: two halves of every class by a hash of each file's name, the same each time."""

    def lot(one: tuple[Path, int]) -> bytes:
        return hashlib.sha256(f"{one[0].parent.name}/{one[0].name}".encode("utf-8", "surrogatepass")).digest()

    by_class = sorted(sorted(files, key=lot)[: 2 * MOST], key=lambda one: one[1])
    return by_class[::2], by_class[1::2]


def _real(run: RunDir, encoder: Any, half: Sequence[tuple[Path, int]]) -> _Set:
    """Encoded once; a folder of real images is compared again and again."""
    features_ND = real_features(run.store, encoder.version, [file for file, _ in half], lambda: _features(encoder, _read(half)).features_ND)
    return _Set(features_ND, np.array([number for _, number in half], dtype=np.int64))


def _read(files: Iterable[tuple[Path, int]]) -> Iterator[tuple[np.ndarray, int]]:
    for file, number in files:
        try:
            with Image.open(file) as picture:
                yield np.asarray(picture.convert("RGB")), number
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise ConfigError(f"{file}: cannot be read as an image ({error}); mend or remove it") from None


def _drawn(run: RunDir, selection: Selection, label: str, numbers: dict[str, int]) -> Iterator[tuple[np.ndarray, int]]:
    """Images of the run; of more than ``MOST`` those whose ids come first, which are hashes: an even sample."""
    some = f"sample_id in (select sample_id from metadata where {selection.sql} order by sample_id limit {MOST})"  # noqa: S608
    for picture, row in open_run(run.store.root).images(some):
        number = numbers.get(value_of(row, label) or "")
        if number is not None:
            yield np.asarray(picture.convert("RGB")), number


def _features(encoder: Any, images: Iterable[tuple[np.ndarray, int]]) -> _Set:
    """CLIP features, scaled so that the mean of their squares is 1: the kernel distance's x.y / D is their cosine."""
    features, labels = [], []
    stream = iter(images)
    while batch := list(islice(stream, BATCH)):
        found_BD = encoder.images([image for image, _ in batch]).cpu().numpy()
        features.append(found_BD * np.sqrt(found_BD.shape[1]))
        labels += [number for _, number in batch]
    return _Set(np.concatenate(features) if features else np.zeros((0, 1)), np.array(labels, dtype=np.int64))


def _samples(one: _Set, size: int) -> list[_Set]:
    """The whole set if it has ``size`` images, else several samples of that many, the same each time."""
    found = len(one.label_N)
    chosen = [np.random.default_rng(seed).permutation(found)[:size] for seed in range(SAMPLES if found > size else 1)]
    return [_Set(one.features_ND[rows], one.label_N[rows]) for rows in chosen]


def _row(name: str, samples: list[_Set], test: _Set, classes: int) -> Row:
    figures = np.array([_figures(made, test, classes) for made in samples])
    accuracy, precision, recall, density, coverage, frechet, kernel, vendi = figures.mean(axis=0).tolist()
    return Row(
        name=name,
        images=len(samples[0].label_N),
        accuracy=accuracy,
        spread=float(figures[:, 0].std(ddof=1)) if len(samples) > 1 else None,
        precision=precision,
        recall=recall,
        density=density,
        coverage=coverage,
        frechet_distance=frechet,
        kernel_distance=kernel,
        vendi=vendi,
    )


def _figures(made: _Set, test: _Set, classes: int) -> tuple[float, ...]:
    return (
        classifier_accuracy((made.features_ND, made.label_N), (test.features_ND, test.label_N), classes=classes),
        *precision_recall_density_coverage(test.features_ND, made.features_ND, k=NEIGHBOURS),
        frechet_distance(test.features_ND, made.features_ND) / test.features_ND.shape[1],  # of features of length 1
        kernel_distance(test.features_ND, made.features_ND),
        vendi_score(made.features_ND),
    )
