"""Every mode on tiny models: an image depends on its draw and its input images, on no neighbour and no slot."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.inputs import Conditions
from pipeline.models import load_model, modes
from pipeline.models.base import ImageModel
from pipeline.models.resolve import resolve_model
from schemas.config import ModelConfig
from schemas.errors import ModelError
from schemas.modes import INPUTS, SCALED, STRENGTH, Mode
from schemas.records import Draw
from tests.pipeline.models import tiny, tiny_families
from tests.pipeline.models.conftest import check_guidance_interval, make_draw

pytestmark = [  # of diffusers' own calls
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The decode_latents method is deprecated:FutureWarning"),
]
FAMILIES = ("sd", "sdxl", "sd3", "flux")
ROWS: list[tuple[str, Mode]] = [
    *[(family, mode) for family in (*FAMILIES, "qwen-image") for mode in ("image-to-image", "inpainting", "control")],
    ("z-image", "image-to-image"),
    ("z-image", "inpainting"),
    ("lcm", "image-to-image"),
    ("inpainter", "inpainting"),
    ("sd-wide", "inpainting"),
    ("upscaler", "super-resolution"),
    ("latent-upscaler", "super-resolution"),
    ("sd", "image-prompt"),
    ("sdxl", "image-prompt"),
    ("sd-t2i", "control"),
    ("sdxl-t2i", "control"),
]
NO_NEGATIVE = ("flux", "lcm")
WITH_REFERENCE: list[tuple[str, Mode]] = [  # and an image that is a prompt beside what the mode takes
    *[(family, mode) for family in ("sd", "sdxl") for mode in ("image-to-image", "inpainting", "control")],
    ("sd-wide", "inpainting"),
    ("sdxl-t2i", "control"),
]
Loaded = Callable[..., ImageModel]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """A tiny model by family, loaded for a mode."""
    root, made = tmp_path_factory.mktemp("modes"), {}
    builders = tiny_families.BUILDERS | tiny.BUILDERS | {"inpainter": tiny.inpainter, "upscaler": tiny.upscaler, "sd-wide": tiny.sd_wide}
    builders |= {"latent-upscaler": tiny.latent_upscaler, "sd-t2i": tiny.sd_for_adapters, "sdxl-t2i": tiny.sdxl}

    def model(family: str, mode: Mode, *, reference: bool = False) -> ImageModel:
        key = (family, mode, reference)
        if key not in made:
            folder = root / family
            if not folder.exists():
                builders[family](folder)
            more = beside(folder, family, mode) | (beside(folder, family, "image-prompt") if reference else {})
            config = ModelConfig.model_validate({"id": str(folder), **more})
            made[key] = load_model(resolve_model(config, base_dir=Path.cwd(), mode=mode), config)
        return made[key]

    return model


def beside(folder: Path, family: str, mode: Mode) -> dict[str, Any]:
    """What the mode needs beside the model, for the configuration."""
    if mode == "image-prompt":
        return {"ip_adapter": tiny.ip_adapter(folder.with_name(f"ip-adapter-{family}"), folder)}
    if mode != "control":
        return {}
    net = folder.with_name(f"controlnet-{family}")
    return {"controlnet": str(tiny.t2i_adapter(net, family) if family.endswith("-t2i") else tiny.controlnet(net, family))}


def a_draw(index: int, mode: Mode, **changes: object) -> Draw:
    of_the_mode = {"strength": STRENGTH.get(mode), "control_scale": 1.0 if mode in SCALED else None}
    return make_draw(index, mode=mode, **of_the_mode | changes)


def inputs(index: int, mode: Mode, scale: int = 4, *, reference: int | None = None) -> Conditions:
    """Noise in each role that the mode has; equal indices are equal inputs. An upscaler's are 1 / ``scale`` of the image.

    ``reference`` is the index of one beside them.
    """
    if reference is not None:
        return replace(inputs(index, mode, scale), reference_HWC=inputs(reference, "image-prompt").reference_HWC)
    rng, side = np.random.default_rng(index), 32 // scale if mode == "super-resolution" else 32
    made = {role: rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for role in INPUTS[mode]}
    mask = made.pop("mask", None)
    return Conditions(
        init_HWC=made.get("init"),
        control_HWC=made.get("control"),
        reference_HWC=made.get("reference"),
        mask_HW=None if mask is None else np.arange(32 * 32).reshape(32, 32) > 600,
    )


def images(model: ImageModel, mode: Mode, *pairs: tuple[int, int], **changes: object) -> np.ndarray:
    """Images of (draw, inputs) pairs."""
    draws = [a_draw(draw, mode, **changes) for draw, _ in pairs]
    scale = modes.INPUT_SCALE.get(type(model._pipe).__name__, 1)  # type: ignore[attr-defined]
    return model.generate(draws, [inputs(index, mode, scale) for _, index in pairs]).images_NHWC


@pytest.mark.parametrize(("family", "mode"), ROWS)
def test_an_image_depends_on_its_inputs_and_on_no_neighbour_and_no_slot(loaded: Loaded, family: str, mode: Mode) -> None:
    model = loaded(family, mode)
    first = images(model, mode, (0, 0), (1, 1), (2, 2))
    second = images(model, mode, (1, 1), (5, 6), (7, 8))
    assert first.shape == (3, 32, 32, 3)
    assert np.array_equal(first[1], second[0])
    other_seed, other_negative = a_draw(1, mode, seed=5), a_draw(1, mode, negative_prompt="" if family in NO_NEGATIVE else "a blue circle")
    scale = modes.INPUT_SCALE.get(type(model._pipe).__name__, 1)  # type: ignore[attr-defined]
    others = model.generate([other_seed, a_draw(1, mode), other_negative], [inputs(index, mode, scale) for index in (1, 3, 1)]).images_NHWC
    assert [np.array_equal(first[1], other) for other in others] == [False, False, family in NO_NEGATIVE]


@pytest.mark.parametrize(("family", "mode"), [row for row in ROWS if row[0] != "lcm"])
def test_guidance_may_be_for_some_of_the_steps(loaded: Loaded, family: str, mode: Mode) -> None:
    model, fixed = loaded(family, mode), {"strength": 1.0} if mode in STRENGTH else {}
    check_guidance_interval(model, lambda **changes: images(model, mode, (0, 0), (1, 1), (2, 2), **fixed, **changes))


@pytest.mark.parametrize(("family", "mode"), WITH_REFERENCE)
def test_an_image_may_be_a_prompt_beside_the_inputs_of_a_mode(loaded: Loaded, family: str, mode: Mode) -> None:
    model = loaded(family, mode, reference=True)

    def made(*triples: tuple[int, int, int], scale: float = 1.0) -> np.ndarray:
        """Images of (draw, inputs, reference)."""
        draws = [a_draw(draw, mode, reference_scale=scale) for draw, *_ in triples]
        return model.generate(draws, [inputs(index, mode, reference=reference) for _, index, reference in triples]).images_NHWC

    first, second = made((0, 0, 0), (1, 1, 1), (2, 2, 2)), made((1, 1, 1), (5, 6, 7), (7, 8, 9))
    assert np.array_equal(first[1], second[0])
    one, other_input, other_reference = made((1, 1, 1), (1, 3, 1), (1, 1, 3))
    assert not np.array_equal(one, other_input)
    assert not np.array_equal(one, other_reference)
    unseen = made((1, 1, 1), (1, 1, 3), scale=0.0)
    assert np.array_equal(unseen[0], unseen[1])
    assert np.array_equal(unseen, images(loaded(family, mode), mode, (1, 1), (1, 1)))


def test_every_pipeline_that_takes_a_reference_is_tested_here(loaded: Loaded) -> None:
    names = {loaded(family, mode, reference=True)._pipe.__class__.__name__ for family, mode in WITH_REFERENCE}  # type: ignore[attr-defined]
    names |= {loaded(family, mode)._pipe.__class__.__name__ for family, mode in ROWS if mode == "image-prompt"}  # type: ignore[attr-defined]
    assert names == modes.TAKES_REFERENCES


@pytest.mark.parametrize(
    ("family", "mode", "name"), [("sd-t2i", "control", "StableDiffusionAdapterPipeline"), ("lcm", "image-to-image", "Latent")]
)
def test_a_pipeline_that_takes_no_reference_is_refused(loaded: Loaded, family: str, mode: Mode, name: str) -> None:
    with pytest.raises(ModelError, match=rf"model.ip_adapter: {family} \({name}.*\) takes none for sampling.mode {mode}; take it out"):
        loaded(family, mode, reference=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_strength_says_how_much_of_the_init_image_is_left(loaded: Loaded, family: str) -> None:
    model = loaded(family, "image-to-image")

    def change(strength: float) -> float:
        """How far apart the images of two init images are."""
        draw = make_draw(0, mode="image-to-image", strength=strength, steps=10)
        made = model.generate([draw, draw], [inputs(0, "image-to-image"), inputs(1, "image-to-image")]).images_NHWC.astype(int)
        return float(np.abs(made[0] - made[1]).mean())

    assert change(0.2) > change(0.9)


@pytest.mark.parametrize(("family", "mode"), [row for row in ROWS if row[1] in SCALED])
def test_an_input_of_scale_0_has_no_say(loaded: Loaded, family: str, mode: Mode) -> None:
    model = loaded(family, mode)

    def image(scale: float, given: int) -> np.ndarray:
        return model.generate([make_draw(0, mode=mode, control_scale=scale)], [inputs(given, mode)]).images_NHWC

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


def test_inpainting_with_a_u_net_of_other_channels_is_refused_where_there_is_no_way(tmp_path: Path) -> None:
    config = json.loads((tiny.sdxl(tmp_path / "sdxl") / "unet/config.json").read_text())
    (tmp_path / "sdxl/unet/config.json").write_text(json.dumps(config | {"in_channels": 16}))
    with pytest.raises(ModelError, match=r"cannot do inpainting; it can do: text-to-image, image-to-image, control, image-prompt$"):
        resolve_model(ModelConfig(id="sdxl"), base_dir=tmp_path, mode="inpainting")


def blended(model: ImageModel, mask_HW: np.ndarray, monkeypatch: pytest.MonkeyPatch, **changes: object) -> tuple[np.ndarray, torch.Tensor]:
    """Image of a draw that is blended into an init image, and the latents that it was decoded from."""
    pipe, seen = model._pipe, []  # type: ignore[attr-defined]
    decode = pipe.vae.decode
    monkeypatch.setattr(pipe.vae, "decode", lambda latents, **more: seen.append(latents) or decode(latents, **more))
    given = [Conditions(init_HWC=inputs(1, "inpainting").init_HWC, mask_HW=mask_HW)]
    return model.generate([make_draw(0, mode="inpainting", **changes)], given).images_NHWC, seen[0] * pipe.vae.config.scaling_factor


@pytest.mark.parametrize("scheduler", ["default", "euler_a", "heun", "dpm++_2m", "pndm", "lcm"])
@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning:numpy")
def test_blending_keeps_the_latents_outside_the_mask(loaded: Loaded, monkeypatch: pytest.MonkeyPatch, scheduler: str) -> None:
    model, mask = loaded("sd-wide", "inpainting"), np.zeros((32, 32), bool)
    mask[3:16, 16:] = True  # cells are of 2 pixels: row 2 is painted as well
    _, latents = blended(model, mask, monkeypatch, strength=1.0, scheduler=scheduler, steps=4)
    vae = model._pipe.vae  # type: ignore[attr-defined]
    pixels = torch.from_numpy(inputs(1, "inpainting").init_HWC).permute(2, 0, 1)[None].float() / 127.5 - 1
    kept = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    equal = torch.isclose(latents, kept, atol=1e-5).all(dim=1)[0].numpy()
    assert not equal[1:8, 8:].any()
    equal[1:8, 8:] = True
    assert equal.all()


@pytest.mark.parametrize("family", ["sd", "sdxl", "inpainter", "sd-wide"])
def test_pixels_that_the_mask_keeps_are_those_of_the_init_image(loaded: Loaded, family: str) -> None:
    made = images(loaded(family, "inpainting"), "inpainting", (0, 1), (1, 2))
    for number, index in enumerate((1, 2)):
        given = inputs(index, "inpainting")
        assert given.init_HWC is not None
        assert given.mask_HW is not None
        assert np.array_equal(made[number][~given.mask_HW], given.init_HWC[~given.mask_HW])
        assert not np.array_equal(made[number][given.mask_HW], given.init_HWC[given.mask_HW])


def test_a_mask_that_is_all_white_leaves_image_to_image(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded("sd-wide", "inpainting")
    image, _ = blended(model, np.ones((32, 32), bool), monkeypatch, strength=0.7)
    draw = make_draw(0, mode="image-to-image", strength=0.7)
    plain = loaded("sd-wide", "image-to-image").generate([draw], [Conditions(init_HWC=inputs(1, "inpainting").init_HWC)])
    assert np.array_equal(image, plain.images_NHWC)


def test_what_is_kept_steers_what_is_painted(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """With pure noise to start from, the painted latents can know of the kept ones through the blending alone."""
    model, mask = loaded("sd-wide", "inpainting"), np.zeros((32, 32), bool)
    mask[:, 16:] = True
    draw, painted = make_draw(0, mode="inpainting", strength=1.0), []
    for index in (1, 2):
        vae: Any = model._pipe.vae  # type: ignore[attr-defined]
        monkeypatch.setattr(vae, "decode", lambda latents, decode=vae.decode, **more: painted.append(latents) or decode(latents, **more))
        init_HWC = inputs(index, "inpainting").init_HWC
        assert init_HWC is not None
        model.generate([draw], [Conditions(init_HWC=np.where(mask[..., None], 0, init_HWC), mask_HW=mask)])
    assert not torch.equal(painted[0][..., 8:], painted[-1][..., 8:])


def test_noise_that_no_seed_decides_is_refused(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded("sd", "image-to-image")
    decode = model._pipe.vae.decode  # type: ignore[attr-defined]
    monkeypatch.setattr(model._pipe.vae, "decode", lambda latents, **more: decode(latents + torch.randn_like(latents), **more))  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="draws noise that no seed of ours decides"):
        images(model, "image-to-image", (0, 0))


def test_a_controlnet_of_another_family_is_refused(tmp_path: Path) -> None:
    tiny.sd(tmp_path / "sd")
    tiny.controlnet(tmp_path / "net", "sd3")
    with pytest.raises(ModelError, match="is a SD3ControlNetModel, and sd takes a ControlNetModel"):
        resolve_model(ModelConfig.model_validate({"id": "sd", "controlnet": "net"}), base_dir=tmp_path, mode="control")


def test_an_adapter_of_edges_reads_one_channel_and_needs_sizes_that_it_can_halve(tmp_path: Path) -> None:
    tiny.sd_for_adapters(tmp_path / "sd")
    own = ModelConfig.model_validate({"id": "sd", "controlnet": str(tiny.t2i_adapter(tmp_path / "net", "sd", in_channels=1))})
    model = load_model(resolve_model(own, base_dir=tmp_path, mode="control"), own)
    one, other = (images(model, "control", (0, given)) for given in (0, 1))
    assert not np.array_equal(one, other)
    public = ModelConfig.model_validate({"id": "sd", "controlnet": str(tiny.t2i_adapter(tmp_path / "other", "sd", downscale_factor=8))})
    assert resolve_model(public, base_dir=tmp_path, mode="control").size_multiple == 16


def test_an_adapter_that_reads_faces_and_one_of_another_model_are_refused(tmp_path: Path) -> None:
    tiny.sd(tmp_path / "sd")
    faces = tiny.ip_adapter(tmp_path / "faces", tmp_path / "sd", **{"image_proj.proj.2.weight": torch.zeros(1)})
    with pytest.raises(ModelError, match=r"adapter.safetensors reads the features of a face \(FaceID\), not images; give another"):
        resolve_model(ModelConfig.model_validate({"id": "sd", "ip_adapter": faces}), base_dir=tmp_path, mode="image-prompt")
    other = ModelConfig.model_validate({"id": "sd", "ip_adapter": tiny.ip_adapter(tmp_path / "xl", tiny.sdxl(tmp_path / "sdxl"))})
    with pytest.raises(ModelError, match=r"model.ip_adapter .*/xl: does not fit StableDiffusionPipeline"):
        load_model(resolve_model(other, base_dir=tmp_path, mode="image-prompt"), other)


def test_every_pipeline_of_the_table_of_modes_is_tested_here(loaded: Loaded) -> None:
    tested = {(mode, loaded(family, mode)._pipe.__class__.__name__) for family, mode in ROWS}  # type: ignore[attr-defined]
    table = {(mode, name) for family in modes._FAMILIES for mode, name in family.items() if mode != "text-to-image"}
    table |= {("inpainting", modes.BLENDS), *(("control", name) for name in modes.T2I_ADAPTERS.values())}
    assert tested == table - {("super-resolution", "IFSuperResolutionPipeline")}  # in test_two_stages
