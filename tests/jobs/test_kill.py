"""kill -9 at any moment, the same command again: the finished dataset is the one of an undisturbed run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.executor import POLL_SECONDS
from jobs.run import run
from jobs.run_dir import RunDir
from schemas import layout
from tests.fakes import LOADER, fake_job
from tests.jobs.test_run import dataset, events
from tests.run_fake import JOB

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.slow


def drive(out: Path, kind: str, **sections: dict) -> subprocess.Popen[bytes]:
    """A driver; what it says goes to ``said`` next to its run folder."""
    command = [sys.executable, "-m", "tests.run_fake", str(out), kind, json.dumps(sections)]
    with (out.parent / "said").open("wb") as said:
        return subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=subprocess.DEVNULL)


def wait_for_images(out: Path, process: subprocess.Popen[bytes], more_than: int) -> None:
    """Until a further shard's images are published (its marker may or may not be), or the process has ended."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if len(list(out.glob("images/*.parquet"))) > more_than:
            return
        time.sleep(0.01)


def test_a_run_that_is_killed_20_times_at_random_moments_ends_in_the_same_bytes(tmp_path: Path) -> None:
    """The seed is printed; longer: ``python -m tests.chaos FOLDER --kills 100``."""
    done = subprocess.run([sys.executable, "-m", "tests.chaos", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stderr)
    report = json.loads(done.stdout)
    assert (report["found"], report["kills"], report["finished"], done.returncode) == ([], 20, False, 0)
    assert report["shards_before_the_end"] > 5, "the kills came too early to test anything"


def test_a_killed_driver_of_ray_actors_loses_and_doubles_nothing(tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    chance = random.Random(seed)
    out = tmp_path / "run"
    for _ in range(2):
        process = drive(out, "ray")
        wait_for_images(out, process, len(list(out.glob("images/*.parquet"))))
        time.sleep(chance.uniform(0, 0.6))
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = len(RunDir.open(out).markers())
    time.sleep(3)  # actors outlive their driver by a moment; what they write then must do no harm
    assert drive(out, "ray").wait(timeout=200) == 0
    assert 0 < done < RunDir.open(out).plan.num_shards, "the kills came too early or too late to test anything"
    run(fake_job(tmp_path, **JOB), out=tmp_path / "undisturbed", model_loader=LOADER)
    assert dataset(out) == dataset(tmp_path / "undisturbed")


def test_ctrl_c_twice_ends_at_once_and_loses_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = drive(out, "local")
    wait_for_images(out, process, 0)
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    assert drive(out, "local").wait(timeout=200) == 0
    run(fake_job(tmp_path, **JOB), out=tmp_path / "undisturbed", model_loader=LOADER)
    assert dataset(out) == dataset(tmp_path / "undisturbed")


def test_sigterm_drains_and_ends_when_the_grace_is_over(tmp_path: Path) -> None:
    """As on a spot machine: with time enough the batch is kept, without it the process is gone in time; both go on to the same bytes."""
    out, opened = tmp_path / "run", tmp_path / "opened"
    texts = [f"picture {n}" for n in range(16)] + [f"WAIT {opened}"] + [f"picture {n}" for n in range(17, 32)]
    sections = {"prompts": {"texts": texts, "draws_per_prompt": 1}, "executor": {}}

    def stopped_in_the_batch(grace_seconds: float) -> subprocess.Popen[bytes]:
        opened.with_suffix(".begun").unlink(missing_ok=True)
        process = drive(out, "local", **sections | {"executor": {"grace_seconds": grace_seconds}})
        deadline = time.monotonic() + 60
        while not opened.with_suffix(".begun").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        return process

    process, began = stopped_in_the_batch(1.0), time.monotonic()
    assert process.wait(timeout=20) == 130
    assert 0.9 < time.monotonic() - began < 5.0
    assert "not finished within 1 s, ending now" in (tmp_path / "said").read_text()
    assert not list(out.glob("partial/*"))
    process = stopped_in_the_batch(60.0)
    time.sleep(4 * POLL_SECONDS)
    opened.touch()
    assert process.wait(timeout=60) == 130
    assert "not finished" not in (tmp_path / "said").read_text()
    assert (events(out)[-1], (out / layout.partial_file(2)).exists()) == ("drained", True)
    assert drive(out, "local", **sections).wait(timeout=100) == 0
    run(fake_job(tmp_path, **JOB | sections), out=tmp_path / "undisturbed", model_loader=LOADER)
    assert dataset(out) == dataset(tmp_path / "undisturbed")


def test_no_process_is_left_behind_by_a_killed_ray_driver(tmp_path: Path) -> None:
    before = ray_processes()
    process = drive(tmp_path / "run", "ray")
    wait_for_images(tmp_path / "run", process, 0)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 120  # Ray's agents take their time
    while ray_processes() - before and time.monotonic() < deadline:
        time.sleep(0.5)
    assert ray_processes() - before == set()


def ray_processes() -> set[int]:
    found = subprocess.run(["pgrep", "-f", "raylet|gcs_server|ray::"], capture_output=True, text=True, check=False)
    return {int(pid) for pid in found.stdout.split()}
