"""kill -9 at any moment, the same command again: the finished dataset is the one of an undisturbed run."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.run import run
from jobs.run_dir import RunDir
from tests.fakes import LOADER, fake_job
from tests.jobs.test_run import dataset
from tests.run_fake import JOB

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.slow


def drive(out: Path, kind: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.run_fake", str(out), kind], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def wait_for_images(out: Path, process: subprocess.Popen[bytes], more_than: int) -> None:
    """Until a further shard's images are published (its marker may or may not be), or the process has ended."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if len(list(out.glob("images/*.parquet"))) > more_than:
            return
        time.sleep(0.01)


@pytest.mark.parametrize(("kind", "kills"), [("local", 5), ("ray", 2)])
def test_a_killed_driver_loses_and_doubles_nothing(tmp_path: Path, kind: str, kills: int) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    chance = random.Random(seed)
    out = tmp_path / "run"
    for _ in range(kills):
        process = drive(out, kind)
        wait_for_images(out, process, len(list(out.glob("images/*.parquet"))))
        time.sleep(chance.uniform(0, 0.6))
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = len(RunDir.open(out).markers())
    time.sleep(3 if kind == "ray" else 0)  # actors outlive their driver by a moment; what they write then must do no harm
    assert drive(out, kind).wait(timeout=200) == 0
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
