"""``promptmill bench``: both ways make the job's own draws, with their settings and input images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.bench import bench, smaller
from jobs.prepare import prepare
from tests.jobs.conftest import JobFile
from tests.pipeline.models import tiny


@pytest.fixture
def image_job(job: JobFile, tiny_model: Path) -> JobFile:
    """Three prompts with an image each, one with steps of its own, and a LoRA."""
    rng = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(job.folder / f"{number}.png")
    rows = ["a,0.png,,dark", "b,1.png,4,", "c,2.png,,"]
    (job.folder / "prompts.csv").write_text("prompt,init_image,steps,negative_prompt\n" + "\n".join(rows) + "\n")
    lora = tiny.lora(job.folder / "style.safetensors", tiny_model, 1)
    sampling = {"mode": "image-to-image", "batch_size": 2, "guidance_interval": [0.0, 0.5]}
    job.write(prompts={"file": "prompts.csv", "draws_per_prompt": 1}, model={"loras": [lora]}, sampling=sampling)
    return job


def test_a_smaller_job_draws_the_first_prompts_as_they_are(image_job: JobFile) -> None:
    prepared = prepare(image_job.path)
    of_all = [draw for prompt in prepared.open_prompts() for draw in prepared.expand(prompt)]
    assert smaller(prepared, 2)[1] == of_all[:2]
    job, draws = smaller(prepared, 6)
    assert [(draw.prompt, draw.draw_index, draw.steps, draw.negative_prompt, draw.init_sha256) for draw in draws] == [
        (draw.prompt, number, draw.steps, draw.negative_prompt, draw.init_sha256) for draw in of_all for number in (0, 1)
    ]
    assert list(job.open_prompts()) == list(prepared.open_prompts())


def test_a_job_with_images_and_addons_is_measured_both_ways(image_job: JobFile) -> None:
    said: list[str] = []
    found = bench(prepare(image_job.path), draws=6, rounds=1, on_message=said.append)
    assert found.draws == 6
    assert all(way.median > 0 for way in found.ways)
    assert "sample" in {stage for stage, *_ in found.stages}
    assert said[0] == "the bare loop guides in all steps, not just in sampling.guidance_interval"
