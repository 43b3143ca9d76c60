"""The whole job on real parts: a folder of Stable Diffusion's architecture, an open_clip folder, Ray, one YAML file."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import REPOSITORY
from tests.jobs.conftest import JobFile
from tests.jobs.test_run import dataset
from tests.pipeline.scorers import tiny_clip

pytestmark = pytest.mark.slow
RAY2, RAY1, LOCAL = ["--set", "executor.actors=2"], ["--set", "executor.actors=1"], ["--executor", "local"]


@pytest.fixture
def clip_job(job: JobFile, tmp_path: Path) -> JobFile:
    """The job with a real CLIP, on Ray."""
    tiny_clip.make(tmp_path / "tiny-clip")
    job.write(scorers={"clip": "tiny-clip", "bright": None}, filter={"rules": [{"score": "clip", "min": 0.0}]}, executor={"kind": "ray"})
    job.raw["scorers"].pop("bright")
    job.write()
    return job


def promptmill(*arguments: object, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """The installed command, from a folder of the user's."""
    command = [str(Path(sys.executable).with_name("promptmill")), *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert found.returncode == code, found.stderr
    return found


def test_one_and_two_actors_and_no_ray_write_the_same_bytes_from_a_folder_of_decoys(clip_job: JobFile, tmp_path: Path) -> None:
    """The user's own ``pipeline/`` and ``schemas/`` packages lie in the current folder and must not be imported."""
    for decoy in ("pipeline", "schemas", "jobs"):
        (tmp_path / decoy).mkdir()
        (tmp_path / decoy / "__init__.py").write_text("raise SystemExit('the decoy was imported')\n")
    for name, options in (("a", RAY1), ("b", RAY2), ("c", LOCAL)):
        promptmill("run", clip_job.path, "--out", name, *options, cwd=tmp_path)
    assert dataset(tmp_path / "a") == dataset(tmp_path / "b") == dataset(tmp_path / "c")


def test_the_table_says_what_made_an_image_and_images_can_be_made_again(clip_job: JobFile, tmp_path: Path) -> None:
    promptmill("run", clip_job.path, "--out", "run", *LOCAL, cwd=tmp_path)
    rows = pq.read_table(tmp_path / "run" / "metadata").to_pylist()
    images = pq.read_table(tmp_path / "run" / "images").to_pylist()
    assert {(row["model"], row["mode"], row["scheduler"], row["steps"], row["width"], row["batch_shape"]) for row in rows} == {
        ("tiny-sd", "text-to-image", "default", 2, 32, "4x32x32")
    }
    assert all(row["model_revision"].startswith("sha256:") and row["clip_version"].startswith("tiny-clip/sha256:") for row in rows)
    assert all(-1 <= row["clip_score"] <= 1 for row in rows)
    assert all(hashlib.sha256(image["image"]["bytes"]).hexdigest() == image["sha256"] for image in images)
    found = promptmill("verify", "run", "--regenerate", 3, cwd=tmp_path)
    assert "3 images made again" in found.stdout


def test_the_commands_read_the_run_and_keep_data_and_progress_apart(clip_job: JobFile, tmp_path: Path) -> None:
    ran = promptmill("run", clip_job.path, "--out", "run", *LOCAL, cwd=tmp_path)
    assert "dataset" in ran.stdout
    asked = promptmill("query", "run", "select count(*) as n from metadata", "--format", "json", cwd=tmp_path)
    assert json.loads(asked.stdout) == [{"n": 10}]
    status = json.loads(promptmill("status", "run", "--json", cwd=tmp_path).stdout)
    assert status["draws_done"] == 10
    promptmill("show", "run", "sheet.png", "--where", "true", cwd=tmp_path)
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    refused = promptmill("query", "run", "copy metadata to 'x.csv'", cwd=tmp_path, code=2)
    assert len(refused.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "x.csv").exists()


def test_reading_commands_start_fast() -> None:
    """The best of five, since machines are noisy; nothing heavy is imported."""
    import time

    def seconds() -> float:
        started = time.perf_counter()
        promptmill("--help", cwd=REPOSITORY)
        return time.perf_counter() - started

    assert min(seconds() for _ in range(5)) < 1.0
