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


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``job.yaml``, which asks for a real CLIP and for Ray, and with the user's own ``pipeline/`` and ``schemas/``
    packages, which must not be imported.
    """
    folder = tmp_path_factory.mktemp("user")
    tiny_clip.make(folder / "tiny-clip")
    job = JobFile(folder, tiny_model)
    job.raw["scorers"] = {"clip": "tiny-clip"}
    job.write(filter={"rules": [{"score": "clip", "min": 0.0}]}, executor={"kind": "ray"})
    for decoy in ("pipeline", "schemas", "jobs"):
        (folder / decoy).mkdir()
        (folder / decoy / "__init__.py").write_text("raise SystemExit('the decoy was imported')\n")
    return folder


@pytest.fixture(scope="module")
def ran(folder: Path) -> subprocess.CompletedProcess[str]:
    """What the command said that made ``run`` there, without Ray."""
    return promptmill("run", "job.yaml", "--out", "run", *LOCAL, cwd=folder)


def promptmill(*arguments: object, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """The installed command, from a folder of the user's."""
    command = [str(Path(sys.executable).with_name("promptmill")), *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert found.returncode == code, found.stderr
    return found


@pytest.mark.usefixtures("ran")
def test_one_and_two_actors_and_no_ray_write_the_same_bytes_from_a_folder_of_decoys(folder: Path) -> None:
    for name, options in (("a", RAY1), ("b", RAY2)):
        promptmill("run", folder / "job.yaml", "--out", name, *options, cwd=folder)
    assert dataset(folder / "a") == dataset(folder / "b") == dataset(folder / "run")


@pytest.mark.usefixtures("ran")
def test_the_table_says_what_made_an_image_and_images_can_be_made_again(folder: Path) -> None:
    rows = pq.read_table(folder / "run" / "metadata").to_pylist()
    images = pq.read_table(folder / "run" / "images").to_pylist()
    assert {(row["model"], row["mode"], row["scheduler"], row["steps"], row["width"], row["batch_shape"]) for row in rows} == {
        ("tiny-sd", "text-to-image", "default", 2, 32, "4x32x32")
    }
    assert all(row["model_revision"].startswith("sha256:") and row["clip_version"].startswith("tiny-clip/sha256:") for row in rows)
    assert all(-1 <= row["clip_score"] <= 1 for row in rows)
    assert all(hashlib.sha256(image["image"]["bytes"]).hexdigest() == image["sha256"] for image in images)
    found = promptmill("verify", "run", "--regenerate", 3, cwd=folder)
    assert "3 images made again" in found.stdout


def test_the_commands_read_the_run_and_keep_data_and_progress_apart(folder: Path, ran: subprocess.CompletedProcess[str]) -> None:
    assert "dataset" in ran.stdout
    asked = promptmill("query", "run", "select count(*) as n from metadata", "--format", "json", cwd=folder)
    assert json.loads(asked.stdout) == [{"n": 10}]
    status = json.loads(promptmill("status", "run", "--json", cwd=folder).stdout)
    assert status["draws_done"] == 10
    promptmill("show", "run", "sheet.png", "--where", "true", cwd=folder)
    assert (folder / "sheet.png").stat().st_size > 1000
    refused = promptmill("query", "run", "copy metadata to 'x.csv'", cwd=folder, code=2)
    assert len(refused.stderr.strip().splitlines()) == 1
    assert not (folder / "x.csv").exists()


def test_reading_commands_start_fast() -> None:
    """The best of five, since machines are noisy; nothing heavy is imported."""
    import time

    def seconds() -> float:
        started = time.perf_counter()
        promptmill("--help", cwd=REPOSITORY)
        return time.perf_counter() - started

    assert min(seconds() for _ in range(5)) < 1.0
