"""Faults of a model in a whole run: memory that is too small, and failed draws that are made again."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.run import run
from jobs.run_dir import RunDir
from jobs.verify import verify
from schemas import layout
from schemas.errors import RunFolderError
from tests.fakes import LOADER, fake_job
from tests.jobs.test_run import dataset, events, make

SMALL = "tests.fakes:load_small"


def rows_of(out: Path) -> list[dict]:
    return pq.read_table(out / layout.METADATA).to_pylist()


def test_a_batch_that_is_too_large_is_halved_once_and_the_noise_stays(tmp_path: Path) -> None:
    said: list[str] = []
    job = fake_job(tmp_path, sampling={"batch_size": 8})
    report = run(job, out=tmp_path / "small", model_loader=SMALL, on_message=said.append)
    assert (report.exit_code, report.accepted) == (0, 20)
    assert {row["batch_shape"] for row in rows_of(tmp_path / "small")} == {"2x16x16"}
    assert events(tmp_path / "small").count("batch_halved") == 1
    assert any("batch halved" in line and "batch_size 2" in line for line in said)
    make(job, tmp_path / "large")
    assert {row["batch_shape"] for row in rows_of(tmp_path / "large")} == {"8x16x16"}
    assert [(row["seed"], row["image_sha256"]) for row in rows_of(tmp_path / "small")] == [
        (row["seed"], row["image_sha256"]) for row in rows_of(tmp_path / "large")
    ]
    assert verify(RunDir.open(tmp_path / "small")).ok


def test_retry_failed_makes_the_failed_draws_again_and_no_other(tmp_path: Path) -> None:
    cure = tmp_path / "cure"
    texts = [*(f"picture {n}" for n in range(9)), f"UNLESS {cure}", "RAISE", "NAN"]
    job = fake_job(tmp_path, prompts={"texts": texts})
    assert make(job, tmp_path / "run").failed == 6
    untouched = (tmp_path / "run" / layout.done_file(0)).read_bytes()
    cure.touch()
    assert make(job, tmp_path / "run").failed == 6, "without being asked to, nothing is tried again"
    report = make(job, tmp_path / "run", retry_failed=True)
    assert (report.failed, report.accepted) == (4, 20)
    assert (tmp_path / "run" / layout.done_file(0)).read_bytes() == untouched
    make(job, tmp_path / "fresh")
    assert dataset(tmp_path / "run") == dataset(tmp_path / "fresh")
    assert verify(RunDir.open(tmp_path / "run")).ok


def test_retry_failed_samples_only_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.fakes import FakeModel

    cure, sampled = tmp_path / "cure", []
    job = fake_job(tmp_path, prompts={"texts": ["one", "two", f"UNLESS {cure}", "four"], "draws_per_prompt": 1})
    make(job, tmp_path / "run")
    cure.touch()
    generate = FakeModel.generate

    def record(self, draws, *inputs):
        sampled.extend(dict.fromkeys(draw.prompt for draw in draws))
        return generate(self, draws, *inputs)

    monkeypatch.setattr(FakeModel, "generate", record)
    assert make(job, tmp_path / "run", retry_failed=True).exit_code == 0
    assert sampled == [f"UNLESS {cure}"]


@pytest.mark.parametrize("at", range(1, 8))
def test_retry_failed_may_be_killed_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    from pipeline.store import LocalStore

    cure = tmp_path / "cure"
    job = fake_job(tmp_path, prompts={"texts": [*(f"picture {n}" for n in range(5)), f"UNLESS {cure}"], "draws_per_prompt": 1})
    make(job, tmp_path / "run")
    cure.touch()
    calls = iter(range(1, 1000))

    class Killed(BaseException):
        pass

    for name in ("put", "delete"):
        method = getattr(LocalStore, name)

        def dying(self, *arguments, method=method):
            if next(calls) >= at:
                raise Killed
            return method(self, *arguments)

        monkeypatch.setattr(LocalStore, name, dying)
    with pytest.raises(Killed):
        run(job, out=tmp_path / "run", model_loader=LOADER, retry_failed=True)
    monkeypatch.undo()
    (tmp_path / "run" / layout.LEASE).unlink(missing_ok=True)  # this process lives on
    assert make(job, tmp_path / "run", retry_failed=True).failed == 0
    make(job, tmp_path / "fresh")
    assert dataset(tmp_path / "run") == dataset(tmp_path / "fresh")


def test_retry_failed_of_a_damaged_shard_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    job = fake_job(tmp_path, prompts={"texts": ["one", "RAISE"]})
    make(job, tmp_path / "run")
    name = tmp_path / "run" / layout.images_file(0)
    name.write_bytes(b"x" * name.stat().st_size)
    with pytest.raises(RunFolderError, match=r"images/00000.parquet: cannot be read .*'promptmill verify .*run' tells"):
        make(job, tmp_path / "run", retry_failed=True)
    assert (tmp_path / "run" / layout.done_file(0)).exists()


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b""], ids=["cut", "grown", "empty"])
def test_a_file_of_another_size_is_made_again_and_reported(tmp_path: Path, damage) -> None:
    make(fake_job(tmp_path), tmp_path / "run")
    before = dataset(tmp_path / "run")
    name = tmp_path / "run" / layout.metadata_file(1)
    name.write_bytes(damage(name.read_bytes()))
    assert make(fake_job(tmp_path), tmp_path / "run").made_now == 8
    assert dataset(tmp_path / "run") == before
    log = [json.loads(line) for line in (tmp_path / "run" / layout.EVENTS).read_text().splitlines()]
    assert ["done/00001.json" in event["found"] for event in log if event["event"] == "shard_damaged"] == [True]
