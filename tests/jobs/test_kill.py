"""kill -9 at any moment, the same command again: the finished dataset is the one of an undisturbed run."""

import contextlib
import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from jobs.run import run
from jobs.run_dir import RunDir
from schemas import layout
from tests.fakes import LOADER, fake_job
from tests.jobs.conftest import Chaos
from tests.jobs.test_run import dataset, events

ROOT = Path(__file__).parent.parent.parent
PR_SET_CHILD_SUBREAPER = 36
pytestmark = pytest.mark.slow


def job(folder: Path) -> dict:
    """18 shards of 8 draws, slow until ``killed`` is in the folder."""
    return {"prompts": {"texts": [f"picture {n} UNTIL {folder / 'killed'}" for n in range(144)], "draws_per_prompt": 1}}


def wait_until(reached: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not reached() and time.monotonic() < deadline:
        time.sleep(0.01)


def drive(out: Path, kind: str, **sections: dict) -> subprocess.Popen[bytes]:
    """A driver; what it says goes to ``said`` next to its run folder."""
    command = [sys.executable, "-m", "tests.run_fake", str(out), kind, json.dumps(sections)]
    with (out.parent / "said").open("wb") as said:
        return subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=subprocess.DEVNULL)


def wait_for_images(out: Path, process: subprocess.Popen[bytes], more_than: int) -> None:
    """Until a further shard's images are published (its marker may or may not be), or the process has ended."""
    wait_until(lambda: process.poll() is not None or len(list(out.glob("images/*.parquet"))) > more_than)


def descendants() -> set[psutil.Process]:
    """Of this process, which adopts those that are orphaned."""
    found = set()
    for one in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, ChildProcessError):
            if one.status() != psutil.STATUS_ZOMBIE:
                found.add(one)
            elif one.ppid() == os.getpid():
                os.waitpid(one.pid, os.WNOHANG)
    return found


def kill_at_work(folder: Path) -> None:
    """A driver on Ray, killed in the second after it has published a shard."""
    out = folder / "run"
    process = drive(out, "ray", **job(folder))
    wait_for_images(out, process, len(list(out.glob("images/*.parquet"))))
    time.sleep(random.uniform(0, 0.6))
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[psutil.Process]]:
    """The folder of a run whose driver was killed, and the processes that there were before it."""
    assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1) == 0
    folder, before = tmp_path_factory.mktemp("killed"), descendants()
    kill_at_work(folder)
    assert descendants() - before, "Ray's agents take their time; else there would be nothing to see"
    return folder, before


@pytest.mark.timeout(900)
def test_a_run_that_is_killed_at_random_moments_ends_in_the_same_bytes(chaos: Chaos) -> None:
    """For three minutes; the seed is printed. The first test here, so that no process of it is among those that a killed driver leaves."""
    status = chaos.process.wait()
    print((chaos.folder / "log").read_text().splitlines()[0])
    report = json.loads((chaos.folder / "report").read_text())
    assert (report["found"], report["kills"], report["finished"], status) == ([], chaos.kills, False, 0)
    assert report["shards_before_the_end"] > chaos.kills / 4, "the kills came too early to test anything"


def test_a_killed_driver_of_ray_actors_loses_and_doubles_nothing(killed: tuple[Path, set[psutil.Process]]) -> None:
    folder, _ = killed
    kill_at_work(folder)
    done = len(RunDir.open(folder / "run").markers())  # actors outlive their driver by a moment; what they write then must do no harm
    (folder / "killed").touch()
    assert drive(folder / "run", "ray", **job(folder)).wait(timeout=200) == 0
    assert 0 < done < RunDir.open(folder / "run").plan.num_shards, "the kills came too early or too late to test anything"
    run(fake_job(folder, **job(folder)), out=folder / "undisturbed", model_loader=LOADER)
    assert dataset(folder / "run") == dataset(folder / "undisturbed")


def test_ctrl_c_twice_ends_at_once_and_loses_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = drive(out, "local", **job(tmp_path))
    wait_for_images(out, process, 0)
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    (tmp_path / "killed").touch()
    assert drive(out, "local", **job(tmp_path)).wait(timeout=200) == 0
    run(fake_job(tmp_path, **job(tmp_path)), out=tmp_path / "undisturbed", model_loader=LOADER)
    assert dataset(out) == dataset(tmp_path / "undisturbed")


def test_sigterm_drains_and_ends_when_the_grace_is_over(tmp_path: Path) -> None:
    """As on a spot machine: with time enough the batch is kept, without it the process is gone in time; both go on to the same bytes."""
    out, opened = tmp_path / "run", tmp_path / "opened"
    texts = [f"picture {n}" for n in range(16)] + [f"WAIT {opened}"] + [f"picture {n}" for n in range(17, 32)]
    prompts = {"texts": texts, "draws_per_prompt": 1}

    def stopped_in_the_batch(grace_seconds: float) -> subprocess.Popen[bytes]:
        opened.with_suffix(".begun").unlink(missing_ok=True)
        process = drive(out, "local", prompts=prompts, executor={"grace_seconds": grace_seconds})
        wait_until(opened.with_suffix(".begun").exists)
        process.send_signal(signal.SIGTERM)
        return process

    process, began = stopped_in_the_batch(1.0), time.monotonic()
    assert process.wait(timeout=60) == 130  # the batch would have waited longer
    assert time.monotonic() - began > 0.9
    assert "not finished within 1 s, ending now" in (tmp_path / "said").read_text()
    assert not (out / layout.partial_file(2)).exists()
    process = stopped_in_the_batch(200.0)
    wait_until(lambda: "finishing the current batches" in (tmp_path / "said").read_text())
    opened.touch()
    assert process.wait(timeout=60) == 130
    assert "not finished" not in (tmp_path / "said").read_text()
    assert (events(out)[-1], (out / layout.partial_file(2)).exists()) == ("drained", True)
    assert drive(out, "local", prompts=prompts).wait(timeout=100) == 0
    run(fake_job(tmp_path, prompts=prompts), out=tmp_path / "undisturbed", model_loader=LOADER)
    assert dataset(out) == dataset(tmp_path / "undisturbed")


def test_no_process_is_left_behind_by_a_killed_ray_driver(killed: tuple[Path, set[psutil.Process]]) -> None:
    """The last test here, since Ray's agents report for a minute to the head that died with the driver."""
    _, before = killed
    wait_until(lambda: not descendants() - before)
    assert descendants() - before == set()
