"""Every mode on tiny models: an image depends on its draw and its input images, on no neighbour and no slot."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.inputs import Conditions
from pipeline.models import load_model
from pipeline.models.base import ImageModel
from pipeline.models.resolve import resolve_model
from schemas.config import ModelConfig
from schemas.errors import ModelError
from schemas.modes import INPUTS, STRENGTH, Mode
from schemas.records import Draw
from tests.pipeline.models import tiny
from tests.pipeline.models.conftest import make_draw

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")  # diffusers' own ControlNet uses it
FAMILIES = ("sd", "sdxl", "sd3", "flux")
ROWS: list[tuple[str, Mode]] = [
    *[(family, mode) for family in FAMILIES for mode in ("image-to-image", "inpainting", "control")],
    ("inpainter", "inpainting"),
    ("upscaler", "super-resolution"),
]
Loaded = Callable[[str, Mode], ImageModel]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """A tiny model by family, loaded for a mode."""
    root, made = tmp_path_factory.mktemp("modes"), {}
    builders = tiny.BUILDERS | {"inpainter": tiny.inpainter, "upscaler": tiny.upscaler}

    def model(family: str, mode: Mode) -> ImageModel:
        if (family, mode) not in made:
            folder = root / family
            if not folder.exists():
                builders[family](folder)
            net = str(tiny.controlnet(root / f"controlnet-{family}", family)) if mode == "control" else None
            config = ModelConfig(id=str(folder), controlnet=net)
            made[family, mode] = load_model(resolve_model(config, base_dir=Path.cwd(), mode=mode), config)
        return made[family, mode]

    return model


def a_draw(index: int, mode: Mode, **changes: object) -> Draw:
    strength = STRENGTH.get(mode)
    return make_draw(index, mode=mode, strength=strength, control_scale=1.0 if mode == "control" else None, **changes)


def inputs(index: int, mode: Mode) -> Conditions:
    """Noise in each role that the mode has; equal indices are equal inputs."""
    rng, side = np.random.default_rng(index), 8 if mode == "super-resolution" else 32
    made = {role: rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for role in INPUTS[mode]}
    mask = made.pop("mask", None)
    return Conditions(
        init_HWC=made.get("init"),
        control_HWC=made.get("control"),
        mask_HW=None if mask is None else np.arange(32 * 32).reshape(32, 32) > 600,
    )


def images(model: ImageModel, mode: Mode, *pairs: tuple[int, int], **changes: object) -> np.ndarray:
    """Images of (draw, inputs) pairs."""
    draws = [a_draw(draw, mode, **changes) for draw, _ in pairs]
    return model.generate(draws, [inputs(index, mode) for _, index in pairs]).images_NHWC


@pytest.mark.parametrize(("family", "mode"), ROWS)
def test_an_image_depends_on_its_inputs_and_on_no_neighbour_and_no_slot(loaded: Loaded, family: str, mode: Mode) -> None:
    model = loaded(family, mode)
    first = images(model, mode, (0, 0), (1, 1), (2, 2))
    second = images(model, mode, (1, 1), (5, 6), (7, 8))
    assert first.shape == (3, 32, 32, 3)
    assert np.array_equal(first[1], second[0])
    same_input, same_draw = images(model, mode, (0, 0), (9, 1), (1, 3))[1:]
    assert not np.array_equal(first[1], same_input)
    assert not np.array_equal(first[1], same_draw)


@pytest.mark.parametrize("family", FAMILIES)
def test_strength_says_how_much_of_the_init_image_is_left(loaded: Loaded, family: str) -> None:
    model = loaded(family, "image-to-image")

    def change(strength: float) -> float:
        """How far apart the images of two init images are."""
        draw = make_draw(0, mode="image-to-image", strength=strength, steps=10)
        made = model.generate([draw, draw], [inputs(0, "image-to-image"), inputs(1, "image-to-image")]).images_NHWC.astype(int)
        return float(np.abs(made[0] - made[1]).mean())

    assert change(0.2) > change(0.9)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_controlnet_of_scale_0_has_no_say(loaded: Loaded, family: str) -> None:
    model = loaded(family, "control")

    def image(scale: float, control: int) -> np.ndarray:
        return model.generate([make_draw(0, mode="control", control_scale=scale)], [inputs(control, "control")]).images_NHWC

    assert np.array_equal(image(0.0, 1), image(0.0, 2))
    assert not np.array_equal(image(0.5, 1), image(1.0, 1))


def test_a_mode_that_a_model_cannot_do_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    tiny.upscaler(tmp_path / "upscaler")
    with pytest.raises(
        ModelError, match=r"upscaler \(StableDiffusionUpscalePipeline\) cannot do text-to-image; it can do: super-resolution"
    ):
        resolve_model(ModelConfig(id="upscaler"), base_dir=tmp_path)
    tiny.sd(tmp_path / "sd")
    with pytest.raises(ModelError, match="it can do: text-to-image, image-to-image, inpainting, outpainting, control"):
        resolve_model(ModelConfig(id="sd"), base_dir=tmp_path, mode="super-resolution")


def test_inpainting_with_a_u_net_of_other_channels_is_refused_before_it_is_loaded() -> None:
    with pytest.raises(ModelError, match=r"cannot do inpainting; it can do: text-to-image, image-to-image, control$"):
        resolve_model(ModelConfig(id="demo"), base_dir=Path.cwd(), mode="inpainting")


def test_noise_that_no_seed_decides_is_refused(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    model = loaded("sd", "image-to-image")
    decode = model._pipe.vae.decode  # type: ignore[attr-defined]
    monkeypatch.setattr(model._pipe.vae, "decode", lambda latents, **more: decode(latents + torch.randn_like(latents), **more))  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="draws noise that no seed of ours decides"):
        images(model, "image-to-image", (0, 0))


def test_a_controlnet_of_another_family_is_refused(tmp_path: Path) -> None:
    tiny.sd(tmp_path / "sd")
    tiny.controlnet(tmp_path / "net", "sd3")
    with pytest.raises(ModelError, match="is a SD3ControlNetModel, and sd takes a ControlNetModel"):
        resolve_model(ModelConfig(id="sd", controlnet="net"), base_dir=tmp_path, mode="control")
