"""The demo job on the bundled model: the promises of a run where pixels matter."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.models.demo.evaluate import settings
from pipeline.models.demo.grammar import sample_scenes
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
