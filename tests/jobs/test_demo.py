"""The demo job on the bundled model: the promises of a run where pixels matter."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.prepare import prepare
from jobs.run import run
from pipeline.inputs import canny
from pipeline.models.demo.evaluate import settings
from pipeline.models.demo.evaluate_modes import edge_f1, psnr
from pipeline.models.demo.grammar import sample_scenes
from pipeline.models.demo.judge import Judge
from pipeline.models.demo.write_inputs import CANNY, half_mask, write_inputs
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


def test_the_inputs_of_the_modes_are_those_that_are_written(tmp_path: Path) -> None:
    write_inputs(tmp_path, count=12, seed=0)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        path.name: path.read_bytes() for path in (REPOSITORY / "configs" / "modes").iterdir() if path.suffix != ".yaml"
    }


LEAST = {"image-to-image": 0.85, "control": 0.85, "super-resolution": 0.85, "inpainting": 0.8, "outpainting": 0.8}


@pytest.mark.parametrize(("mode", "least"), LEAST.items())
def test_the_bundled_models_draw_from_an_image_what_the_prompt_says(mode: str, least: float, tmp_path: Path) -> None:
    scenes = write_inputs(tmp_path, count=12, seed=0)[mode]
    (tmp_path / "job.yaml").write_text((REPOSITORY / "configs" / "modes" / f"{mode}.yaml").read_text())
    report = run(prepare(tmp_path / "job.yaml", ["prompts.draws_per_prompt=2", "executor.kind=local"]), out=tmp_path / "run")
    assert report.made_now == 24
    rows = pq.read_table(tmp_path / "run" / "metadata").to_pylist()
    by_id = {row["sample_id"]: row["image"]["bytes"] for row in pq.read_table(tmp_path / "run" / "images").to_pylist()}
    images = np.stack([np.asarray(Image.open(io.BytesIO(by_id[row["sample_id"]]))) for row in rows])
    numbers = [int(row["prompt_id"]) for row in rows]
    right = [reading.matches(scenes[number]) for reading, number in zip(Judge.load()(images), numbers, strict=True)]
    assert np.mean(right) >= least
    drawings = np.stack([np.asarray(Image.open(tmp_path / f"pair_{number:03d}.png")) for number in numbers])
    if mode == "image-to-image":
        moved, others = (np.abs(images.astype(int) - shown).mean() for shown in (drawings, np.roll(drawings, 8, axis=0)))
        assert moved < 0.5 * others
    if mode.endswith("painting"):
        start = [np.asarray(Image.open(tmp_path / f"left_{number:03d}.png")) for number in numbers] if mode == "outpainting" else drawings
        painted = [half_mask(scenes[number].relation) > 0 for number in numbers]
        kept = [
            (image[~mask], (shown if mode == "inpainting" else np.pad(shown, ((0, 0), (0, 32), (0, 0))))[~mask])
            for image, shown, mask in zip(images, start, painted, strict=True)
        ]
        assert all(np.array_equal(image, shown) for image, shown in kept)
    if mode == "control":
        edges = [(canny(image, *CANNY), canny(drawing, *CANNY)) for image, drawing in zip(images, drawings, strict=True)]
        assert np.mean([edge_f1(*pair) for pair in edges]) >= 0.85
        assert np.mean([edge_f1(found, edges[k - 8][1]) for k, (found, _) in enumerate(edges)]) < 0.6
    if mode == "super-resolution":
        small = [Image.open(tmp_path / f"small_{number:03d}.png") for number in numbers]
        bicubic = np.stack([np.asarray(one.resize((64, 64), Image.Resampling.BICUBIC)) for one in small])
        assert psnr(images, drawings) >= psnr(bicubic, drawings) + 3
