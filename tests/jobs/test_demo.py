"""The demo job on the bundled model: the promises of a run where pixels matter."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.models.demo.evaluate import settings
from pipeline.models.demo.grammar import sample_scenes
from pipeline.models.demo.judge import Judge
from pipeline.models.demo.write_inputs import write_inputs
from schemas.config_load import load
from tests.conftest import REPOSITORY
from tests.jobs.test_real_models import LOCAL, RAY2, promptmill
from tests.jobs.test_run import dataset

DEMO = REPOSITORY / "configs" / "demo.yaml"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def small_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo job over its first 12 prompts, twice each, made on Ray."""
    folder = tmp_path_factory.mktemp("demo")
    lines = (REPOSITORY / "configs" / "demo_prompts.csv").read_text().splitlines(keepends=True)
    (folder / "demo_prompts.csv").write_text("".join(lines[:13]))
    (folder / "demo.yaml").write_text(DEMO.read_text())
    promptmill("run", "demo.yaml", "--out", "run", "--set", "prompts.draws_per_prompt=2", *RAY2, cwd=folder)
    return folder


def test_the_demo_job_has_the_settings_that_were_measured() -> None:
    config, measured = load(DEMO), settings()
    assert config.sampling.steps == measured["steps"]
    assert config.sampling.guidance_scale == measured["guidance_scale"]
    assert config.sampling.batch_size == measured["batch_size"]
    assert config.model.dtype == measured["dtype"]
    assert config.filter.rules[0].min == measured["clip_threshold"]


def test_the_demo_prompts_are_those_of_the_grammar() -> None:
    rows = (REPOSITORY / "configs" / "demo_prompts.csv").read_text().splitlines()[1:]
    scenes = sample_scenes(len(rows), seed=0)
    assert [row.split(",")[1] for row in rows] == [scene.caption() for scene in scenes]


def test_ray_and_local_draw_the_same_bytes(small_demo: Path) -> None:
    promptmill("run", "demo.yaml", "--out", "again", "--set", "prompts.draws_per_prompt=2", *LOCAL, cwd=small_demo)
    assert dataset(small_demo / "run") == dataset(small_demo / "again")


def test_draws_made_again_alone_have_the_same_bytes(small_demo: Path) -> None:
    found = promptmill("verify", "run", "--regenerate", 3, cwd=small_demo)
    assert found.stdout.startswith("no problem")


def test_captions_and_structure_are_columns(small_demo: Path) -> None:
    rows = pq.read_table(small_demo / "run" / "metadata").to_pylist()
    assert len(rows) == 24
    tags = dict(rows[2]["tags"])
    assert tags["kind"] == "two"
    assert tags["colour"] in rows[2]["prompt"]
    assert rows[2]["label"] == tags["shape"]
    found = promptmill(
        "query", "run", "select tags['kind'] as kind, count(*) as n from metadata group by 1", "--format", "json", cwd=small_demo
    )
    assert sorted((row["kind"], row["n"]) for row in json.loads(found.stdout)) == [("count", 8), ("one", 8), ("two", 8)]


def test_the_bundled_model_draws_over_a_drawing_what_the_prompt_says(tmp_path: Path) -> None:
    scenes = write_inputs(tmp_path, count=12, seed=0)
    for name in ("image-to-image.csv", *(f"pair_{number:03d}.png" for number in range(12))):
        assert (tmp_path / name).read_bytes() == (REPOSITORY / "configs" / "modes" / name).read_bytes()
    (tmp_path / "job.yaml").write_text((REPOSITORY / "configs" / "modes" / "image-to-image.yaml").read_text())
    promptmill("run", "job.yaml", "--out", "run", *LOCAL, cwd=tmp_path)
    rows = pq.read_table(tmp_path / "run" / "metadata").to_pylist()
    images = {row["sample_id"]: row["image"]["bytes"] for row in pq.read_table(tmp_path / "run" / "images").to_pylist()}
    pixels = [np.asarray(Image.open(io.BytesIO(images[row["sample_id"]]))) for row in rows]
    wanted = [scenes[int(row["prompt_id"])] for row in rows]
    right = [reading.matches(scene) for reading, scene in zip(Judge.load()(np.stack(pixels)), wanted, strict=True)]
    assert np.mean(right) >= 0.75
    inits = [np.asarray(Image.open(tmp_path / f"pair_{int(row['prompt_id']):03d}.png")) for row in rows]
    moved = np.abs(np.stack(pixels).astype(int) - np.stack(inits)).mean()
    others = np.abs(np.stack(pixels).astype(int) - np.stack(inits[4:] + inits[:4])).mean()
    assert moved < 0.5 * others
