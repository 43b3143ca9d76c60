"""A refiner or an upscaler after a text-to-image model: the laws of a draw hold for the two as for one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.models import load_model
from pipeline.models.bare import BareLoop
from pipeline.models.base import ImageModel
from pipeline.models.resolve import ModelCard, resolve_model
from schemas.config import ModelConfig
from schemas.errors import ModelError
from schemas.seeds import second_seed
from tests.pipeline.models import tiny, tiny_families
from tests.pipeline.models.conftest import make_draw
from tests.pipeline.models.test_families import promptmill

BUILDERS = {
    "sdxl": tiny.sdxl,
    "refiner": tiny_families.sdxl_refiner,
    "sd": tiny.sd,
    "upscaler": tiny.upscaler,
    "if": tiny_families.deepfloyd_if,
    "if-2": tiny_families.if_superresolution,
}
CASCADES = {  # first, second, its mode, size in pixels
    "sdxl+refiner": ("sdxl", "refiner", "image-to-image", 32),
    "sd+upscaler": ("sd", "upscaler", "super-resolution", 32),
    "if+if-2": ("if", "if-2", "super-resolution", 64),
}
Made = Callable[[str], Path]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("stages")
    return lambda name: root / name if (root / name).exists() else BUILDERS[name](root / name)


def load(folder_of: Made, cascade: str, **changes: Any) -> tuple[ModelCard, ImageModel]:
    first, second, mode, _ = CASCADES[cascade]
    stage = {"id": str(folder_of(second)), "mode": mode, "steps": 4} | changes
    config = ModelConfig.model_validate({"id": str(folder_of(first)), "second_stage": stage})
    card = resolve_model(config, base_dir=Path.cwd())
    return card, load_model(card, config)


@pytest.mark.parametrize("cascade", CASCADES)
def test_an_image_of_two_stages_is_a_function_of_its_draw(folder_of: Made, cascade: str) -> None:
    size = CASCADES[cascade][3]
    card, model = load(folder_of, cascade)

    def images(*numbers: int, **changes: Any) -> np.ndarray:
        return model.generate([make_draw(n, width=size, height=size, **changes) for n in numbers]).images_NHWC

    first = images(0, 1)
    assert first.shape == (2, size, size, 3)
    assert np.array_equal(first[1], images(1, 5)[0])
    assert not np.array_equal(first, images(0, 1, prompt="a blue circle"))
    assert not np.array_equal(first[0], first[1])
    assert card.revision.count("+") == 2
    assert card.size_multiple == (8 if cascade == "sdxl+refiner" else 32)


def test_the_second_stage_is_given_the_image_of_the_first(folder_of: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = load(folder_of, "sdxl+refiner", strength=0.5, guidance_scale=2.0)
    second, seen = model._second, []  # type: ignore[attr-defined]
    generate = second.generate
    monkeypatch.setattr(second, "generate", lambda draws, given: seen.append((draws[0], given)) or generate(draws, given))
    model.generate([make_draw(0, guidance_rescale=0.7)])
    [(draw, [given])] = seen
    assert np.array_equal(
        given.init_HWC, load_model(*_plain(folder_of("sdxl"))).generate([make_draw(0, guidance_rescale=0.7)]).images_NHWC[0]
    )
    assert (draw.strength, draw.steps, draw.guidance_scale, draw.guidance_rescale) == (0.5, 4, 2.0, None)
    assert draw.seed == second_seed(make_draw(0).seed)


def _plain(folder: Path) -> tuple[ModelCard, ModelConfig]:
    config = ModelConfig(id=str(folder))
    return resolve_model(config, base_dir=Path.cwd()), config


def test_noise_is_used_once() -> None:
    assert second_seed(7) == second_seed(7)
    assert len({7, second_seed(7), second_seed(8)}) == 3


def test_a_second_model_that_cannot_do_its_mode_is_refused(folder_of: Made) -> None:
    with pytest.raises(
        ModelError, match=r"refiner \(StableDiffusionXLImg2ImgPipeline\) cannot do super-resolution; it can do: image-to-image"
    ):
        load(folder_of, "sdxl+refiner", mode="super-resolution")


@pytest.mark.parametrize("cascade", CASCADES)
def test_the_loop_that_bench_compares_with_makes_images_of_both(folder_of: Made, cascade: str) -> None:
    first, second, mode, size = CASCADES[cascade]
    stage = {"id": str(folder_of(second)), "mode": mode, "steps": 4}
    config = ModelConfig.model_validate({"id": str(folder_of(first)), "second_stage": stage})
    loop = BareLoop(resolve_model(config, base_dir=Path.cwd()), config, 1)
    draws = [make_draw(number, width=size, height=size) for number in (0, 1)]
    images = loop.draw(draws)
    assert images.shape == (2, size, size, 3)
    made = load(folder_of, cascade)[1].generate(draws).images_NHWC.astype(int)
    apart = np.abs(images - made).mean()  # not nothing, since the loop reads the texts of a batch together
    assert apart < np.abs(images - made[::-1]).mean() / 3


def test_a_job_of_two_stages_runs_from_a_yaml_and_makes_the_same_bytes_again(
    folder_of: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = {
        "prompts": {"texts": ["a red square", "a blue circle"]},
        "model": {"id": str(folder_of("sd")), "second_stage": {"id": str(folder_of("upscaler")), "mode": "super-resolution"}},
        "sampling": {"steps": 2, "batch_size": 2},
        "executor": {"kind": "local"},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    assert promptmill("run", tmp_path / "job.yaml", "--out", tmp_path / "run") == 0, capsys.readouterr().err
    rows = pq.read_table(tmp_path / "run/metadata").to_pylist()
    assert {(row["width"], row["height"], row["mode"]) for row in rows} == {(128, 128, "text-to-image")}
    assert all(row["model_revision"].endswith("+super-resolution") for row in rows)
    assert promptmill("verify", tmp_path / "run", "--regenerate", 2) == 0
