"""A store that is slower than the sampler: sampling goes on until a bounded buffer is full, and no law suffers.

Told by the order of events: images are published once a gate is opened, and that happens when enough of them wait before it.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.executor import POLL_SECONDS
from jobs.run import RunReport, Tally, run
from jobs.run_dir import RunDir
from pipeline import worker
from pipeline.worker import SHARDS_AT_ONCE, SHARDS_UNWRITTEN
from schemas import layout
from schemas.errors import RunFolderError
from tests.fakes import fake_job
from tests.jobs.test_run import RAY1, dataset, make

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SHARD = 8  # draws
JOB = {"prompts": {"texts": [f"picture {n}" for n in range(12 * SHARD)], "draws_per_prompt": 1}, "output": {"shard_size": SHARD}}
FULL = SHARDS_AT_ONCE + SHARDS_UNWRITTEN


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A closed gate; it opens when the file is written."""
    monkeypatch.setattr(worker, "open_store", worker.open_store)  # what the model's loader changes is set back
    monkeypatch.setenv("PROMPTMILL_TEST_GATE", str(tmp_path / "gate"))
    return tmp_path / "gate"


def waiting(gate: Path) -> int:
    """Shards whose images wait, or have waited, for the store."""
    return len(list(gate.parent.glob("gate.*")))


def run_before(gate: Path, at: int, then: Callable[[], object], executor: dict | None = None) -> tuple[RunReport, list[int]]:
    """The run, and the draws that were sampled when so many shards waited; then something is done."""
    seen: list[int] = []

    def on_tally(tally: Tally) -> None:
        if not seen and waiting(gate) >= at and tally.sampled >= at * SHARD:  # Ray tells the latter a moment later
            seen.append(tally.sampled)
            then()

    job = fake_job(gate.parent, **JOB, executor=executor or {})
    return run(job, out=gate.parent / "run", model_loader="tests.fakes:load_before_a_gate", on_tally=on_tally), seen


def whole(folder: Path) -> dict[str, bytes]:
    make(fake_job(folder, **JOB), folder / "undisturbed")
    return dataset(folder / "undisturbed")


@pytest.mark.parametrize("executor", [{}, pytest.param(RAY1, marks=pytest.mark.slow)], ids=["local", "ray"])
def test_sampling_goes_on_until_the_buffer_is_full(gate: Path, executor: dict) -> None:
    """At its end all threads that make shards wait for the store, so nothing is sampled any more."""
    report, sampled = run_before(gate, FULL, lambda: gate.write_text("open"), executor)
    assert sampled == [FULL * SHARD]
    assert (report.exit_code, report.accepted) == (0, 12 * SHARD)
    assert dataset(gate.parent / "run") == whole(gate.parent)


def test_the_buffer_is_bounded_in_bytes_too(gate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "UNWRITTEN_BYTES", 1)
    most: list[int] = []

    def look_and_open() -> None:
        time.sleep(4 * POLL_SECONDS)
        most.append(waiting(gate))
        gate.write_text("open")

    report, _ = run_before(gate, SHARDS_AT_ONCE, look_and_open)
    assert most[0] <= SHARDS_AT_ONCE + 1, "one may be handed out between its last batch and its first byte"
    assert (report.exit_code, report.accepted) == (0, 12 * SHARD)


def test_a_write_that_fails_fails_its_own_shard_and_no_other(gate: Path) -> None:
    with pytest.raises(RunFolderError, match=r"^images/00003.parquet: refused$"):
        run_before(gate, FULL, lambda: gate.write_text("refuse"))
    done = {marker.shard_id for marker in RunDir.open(gate.parent / "run").markers()}
    assert set(range(FULL)) - done == {3}, "what waited with it is committed, and perhaps one that began before the error was seen"
    assert not (gate.parent / "run" / layout.metadata_file(3)).exists()
    gate.write_text("open")
    report, _ = run_before(gate, 0, lambda: None)
    assert report.made_now == (12 - len(done)) * SHARD
    assert dataset(gate.parent / "run") == whole(gate.parent)


def test_what_waits_for_the_store_is_committed_when_the_run_is_stopped(gate: Path) -> None:
    def stop_and_open() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        gate.write_text("open")

    report, _ = run_before(gate, FULL, stop_and_open)
    assert (report.exit_code, report.made_now) == (130, FULL * SHARD)
    report, _ = run_before(gate, 0, lambda: None)
    assert (report.exit_code, report.made_now) == (0, (12 - FULL) * SHARD)
    assert dataset(gate.parent / "run") == whole(gate.parent)
