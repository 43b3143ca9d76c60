"""``verify`` looks at the features that ``embed`` keeps: those that fit are read, those that fit nothing are named."""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.embeddings import Encoder, file_of, write_encoder, write_features
from jobs.lease import hold
from jobs.run_dir import RunDir
from jobs.verify import verify
from schemas import layout
from tests.runs import finished_run

WIDTH, VERSION = 8, "a-clip@1"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four shards with features as ``embed`` writes them, of length 1."""
    run = finished_run(tmp_path_factory.mktemp("embedded") / "run")
    for marker in run.markers():
        sample_ids = pq.read_table(f"{run.store.root}/{layout.images_file(marker.shard_id)}")["sample_id"].to_pylist()
        features_ND = np.random.default_rng(marker.shard_id).normal(size=(len(sample_ids), WIDTH))
        write_features(run.store, file_of(marker, VERSION), sample_ids, features_ND / np.linalg.norm(features_ND, axis=1, keepdims=True))
    write_encoder(run.store, Encoder(VERSION, WIDTH))
    return Path(run.store.root)


@pytest.fixture
def run(good: Path, tmp_path: Path) -> RunDir:
    """A copy of it, to be spoiled."""
    shutil.copytree(good, tmp_path / "run")
    return RunDir.open(tmp_path / "run")


def file(run: RunDir, shard_id: int = 1) -> str:
    return file_of(run.markers()[shard_id], VERSION)


def problems(run: RunDir) -> dict[str, str]:
    return {problem.file: f"{problem.what}; {problem.remedy}" for problem in verify(run).problems}


def rewrite(run: RunDir, change: Callable[[list[str], np.ndarray], tuple[list[str], np.ndarray]]) -> None:
    """The features of a shard with a change, in a file that is readable."""
    table = pq.read_table(f"{run.store.root}/{file(run)}")
    values_ND = np.stack(table["embedding"].to_numpy())
    write_features(run.store, file(run), *change(table["sample_id"].to_pylist(), values_ND))


def test_features_that_fit_are_no_problem_and_their_reading_is_told(run: RunDir) -> None:
    told: list[tuple[str, int, int]] = []
    assert verify(run, on_count=lambda *count: told.append(count)).problems == ()
    assert told[-4:] == [("files of embeddings", done, 4) for done in range(1, 5)]


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_truncated_file_is_named(run: RunDir, keep: int) -> None:
    run.store.put(file(run), run.store.get(file(run))[:keep])
    [(name, what)] = problems(run).items()
    assert name == file(run)
    assert what.startswith("is not readable Parquet: ")
    assert what.endswith("; delete it, and run 'promptmill embed' again")


def test_every_flipped_bit_of_the_features_is_found(run: RunDir) -> None:
    data = run.store.get(file(run))
    values = np.stack(pq.read_table(f"{run.store.root}/{file(run)}")["embedding"].to_numpy()).tobytes()
    start = data.index(values)
    for at in range(start, start + len(values), 7):
        spoiled = bytearray(data)
        spoiled[at] ^= 1 << at % 8
        run.store.put(file(run), bytes(spoiled))
        assert list(problems(run)) == [file(run)], at


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda names, values: (names[1:], values[1:]), "has 3 rows, the shard 4 images"),
        (lambda names, values: (names[::-1], values[::-1]), "its sample ids are not those of the shard, in their order"),
        (lambda names, values: (["0" * 20, *names[1:]], values), "its sample ids are not those of the shard, in their order"),
        (lambda names, values: ([names[1], *names[1:]], values), "its sample ids are not those of the shard, in their order"),
        (lambda names, values: (names, values[:, :4]), "has features of 4 numbers, the model makes 8"),
        (lambda names, values: (names, values * 2), "has length 2, not 1"),
        (lambda names, values: (names, values * np.nan), "has length nan, not 1"),
    ],
)
def test_features_of_other_rows_or_another_shape_are_told(
    run: RunDir, change: Callable[[list[str], np.ndarray], tuple[list[str], np.ndarray]], what: str
) -> None:
    rewrite(run, change)
    [(name, found)] = problems(run).items()
    assert name == file(run)
    assert what in found


def test_files_that_fit_no_shard_no_image_or_no_run_are_named_and_missing_ones_counted(run: RunDir) -> None:
    data = run.store.get(file(run))
    run.store.delete(file(run, 2))
    stray = ["embeddings/copy.parquet", layout.embeddings_file(77, "0" * 16), layout.embeddings_file(1, "0" * 16)]
    for name in stray:
        run.store.put(name, data)
    clear = "run 'promptmill embed' again, it clears it away"
    assert problems(run) == {
        stray[0]: "is no file of a run; move it elsewhere",
        stray[1]: f"belongs to no committed shard; {clear}",
        stray[2]: f"is of other images or another model than the run's; {clear}",
        layout.EMBEDDINGS_INDEX: "1 of 4 shards have no features, the first is 2; run 'promptmill embed' again, it makes them",
    }
    run.store.put(layout.LEASE, b"{}")
    assert set(problems(run)) == set(stray[:2]), "somebody is at work: what does not fit yet may be its own"
    run.store.delete(layout.LEASE)
    with hold(run.store, threading.Event()):
        assert set(problems(run)) == set(stray[:2])
        here = json.loads(run.store.get(layout.LEASE))
    run.store.put(layout.LEASE, json.dumps(here | {"started": "0"}).encode())
    assert len(problems(run)) == 4, "whoever was at work has died on this machine"


def test_a_damaged_index_is_told_and_features_without_one_are_those_of_an_embed_that_goes_on(run: RunDir) -> None:
    run.store.put(layout.EMBEDDINGS_INDEX, json.dumps({"version": VERSION}).encode())
    assert problems(run) == {layout.EMBEDDINGS_INDEX: "is damaged; delete it, and run 'promptmill embed' again"}
    run.store.delete(layout.EMBEDDINGS_INDEX)
    assert problems(run) == {}
