"""An image is a function of its draw and of the batch's size, on real pipelines with random weights."""

import inspect
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from pipeline.models.base import ImageModel, Timed
from pipeline.models.diffusers_model import _makes_more_than_an_image
from schemas.errors import ModelError
from tests.pipeline.models import tiny
from tests.pipeline.models.conftest import load, make_draw

Loaded = Callable[[str], ImageModel]


@pytest.mark.parametrize("family", tiny.BUILDERS)
def test_an_image_depends_on_no_neighbour_and_no_slot(loaded: Loaded, family: str) -> None:
    model, draw = loaded(family), make_draw(1, negative_prompt="" if family == "flux" else "blurry")
    first = model.generate([make_draw(0), draw, make_draw(2), make_draw(3)])
    second = model.generate([make_draw(7, prompt="a blue circle"), make_draw(8), make_draw(9), draw])
    assert np.array_equal(first.images_NHWC[1], second.images_NHWC[3])
    assert first.images_NHWC.shape == (4, 32, 32, 3)
    assert first.images_NHWC.dtype == np.uint8
    assert first.finite.all()


@pytest.mark.parametrize("family", tiny.BUILDERS)
def test_an_image_depends_on_seed_prompt_guidance_and_steps(loaded: Loaded, family: str) -> None:
    model = loaded(family)
    changed = [{}, {"seed": 5}, {"prompt": "a blue circle"}, {"guidance_scale": 1.0}, {"guidance_scale": 9.0}, {"steps": 4}]
    images = [model.generate([make_draw(0, **change)]).images_NHWC for change in changed]
    for i, one in enumerate(images):
        assert all(not np.array_equal(one, other) for other in images[i + 1 :])


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
def test_the_negative_prompt_counts_with_guidance_only(loaded: Loaded, family: str) -> None:
    model = loaded(family)

    def image(negative: str, scale: float) -> np.ndarray:
        return model.generate([make_draw(0, negative_prompt=negative, guidance_scale=scale)]).images_NHWC

    assert not np.array_equal(image("", 4.0), image("a blue circle", 4.0))
    assert np.array_equal(image("", 1.0), image("a blue circle", 1.0))


@pytest.mark.parametrize("scheduler", ["ddpm", "euler_a", "dpm2_a", "dpm++_2m_sde", "dpm++_sde", "lcm"])
@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning:numpy")
def test_the_noise_of_stochastic_samplers_belongs_to_the_image(loaded: Loaded, scheduler: str) -> None:
    model, draw = loaded("sd"), make_draw(1, scheduler=scheduler)
    first = model.generate([draw, make_draw(2, scheduler=scheduler)])
    second = model.generate([make_draw(3, scheduler=scheduler), draw])
    assert np.array_equal(first.images_NHWC[0], second.images_NHWC[1])


def test_a_sampler_leaves_nothing_behind_for_the_next_batch(loaded: Loaded) -> None:
    model, draws = loaded("sd"), [make_draw(0), make_draw(1)]
    before = model.generate(draws).images_NHWC
    for scheduler in ("dpm++_2m", "euler", "unipc"):
        assert not np.array_equal(
            model.generate([make_draw(0, scheduler=scheduler), make_draw(1, scheduler=scheduler)]).images_NHWC, before
        )
    assert np.array_equal(model.generate(draws).images_NHWC, before)


def test_a_model_loaded_again_draws_the_same(loaded: Loaded, model_folder: Callable[[str], Path]) -> None:
    draws = [make_draw(0), make_draw(1)]
    assert np.array_equal(loaded("sd").generate(draws).images_NHWC, load(model_folder("sd")).generate(draws).images_NHWC)


def test_embeddings_made_alone_draw_what_the_bare_pipeline_draws(model_folder: Callable[[str], Path], loaded: Loaded) -> None:
    import torch

    draw = make_draw(0, negative_prompt="a blue circle")
    for family in ("sd", "sdxl", "sd3"):
        pipe = tiny.diffusers.DiffusionPipeline.from_pretrained(model_folder(family))
        pipe.set_progress_bar_config(disable=True)
        bare = pipe(
            draw.prompt,
            negative_prompt=draw.negative_prompt,
            num_inference_steps=3,
            guidance_scale=4.0,
            width=32,
            height=32,
            generator=[torch.Generator("cpu").manual_seed(draw.seed)],
            output_type="np",
        ).images
        ours = loaded(family).generate([draw]).images_NHWC
        assert np.abs((bare * 255).round().astype(int) - ours.astype(int)).max() <= 1


def test_sdxl_without_a_negative_prompt_is_guided_away_from_zeros_as_it_was_trained(
    model_folder: Callable[[str], Path], loaded: Loaded
) -> None:
    import torch

    pipe = tiny.diffusers.DiffusionPipeline.from_pretrained(model_folder("sdxl"))
    pipe.set_progress_bar_config(disable=True)
    assert pipe.config.force_zeros_for_empty_prompt
    generator = [torch.Generator("cpu").manual_seed(1000)]
    bare = pipe(
        "a red square 0", num_inference_steps=3, guidance_scale=4.0, width=32, height=32, generator=generator, output_type="np"
    ).images
    ours = loaded("sdxl").generate([make_draw(0)]).images_NHWC
    assert np.abs((bare * 255).round().astype(int) - ours.astype(int)).max() <= 1


def test_each_text_is_encoded_once(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded("sd")
    seen: list[str] = []
    encoder = model._encoder  # type: ignore[attr-defined]
    encode = encoder._encode
    monkeypatch.setattr(encoder, "_encode", lambda text: seen.append(text) or encode(text))
    for _ in range(2):
        model.generate([make_draw(0, prompt="first, unseen"), make_draw(1, prompt="second, unseen"), make_draw(2, prompt="first, unseen")])
    assert sorted(text for text in seen if "unseen" in text) == ["first, unseen", "second, unseen"]


def test_reading_and_decoding_are_timed_apart(loaded: Loaded) -> None:
    for family in ("sd", "flux"):
        model = loaded(family)
        assert isinstance(model, Timed)
        model.take_seconds()
        started = time.perf_counter()
        model.generate([make_draw(0, prompt=f"unread by {family}")])
        seconds, whole = model.take_seconds(), time.perf_counter() - started
        assert seconds.keys() == {"text", "decode"}
        assert all(0 < spent < whole for spent in seconds.values())
        model.generate([make_draw(0, prompt=f"unread by {family}")])
        assert model.take_seconds().keys() == {"decode"}  # its text is known


def test_texts_kept_are_bounded(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded("sd")
    monkeypatch.setattr("pipeline.models.embeddings._CAPACITY_BYTES", 3 * 77 * 32 * 4)
    before = model.generate([make_draw(0)]).images_NHWC
    for index in range(5):
        model.generate([make_draw(index)])
    assert len(model._encoder._kept) <= 3  # type: ignore[attr-defined]
    assert np.array_equal(model.generate([make_draw(0)]).images_NHWC, before)


def test_tokens_are_counted_before_truncation(loaded: Loaded) -> None:
    prompts = ["a red square", "word " * 75, "word " * 76, "x" * 10_000, ""]
    made = loaded("sd").generate([make_draw(index, prompt=prompt, steps=1) for index, prompt in enumerate(prompts)])
    assert list(made.prompt_tokens)[:3] == [5, 77, 78]
    assert list(made.prompt_truncated) == [False, False, True, True, False]
    assert made.finite.all()


def test_models_that_read_further_with_another_encoder_truncate_later(loaded: Loaded) -> None:
    made = loaded("sd3").generate([make_draw(0, prompt="red " * 255, steps=1), make_draw(1, prompt="red " * 256, steps=1)])
    assert list(made.prompt_tokens) == [256, 257]
    assert list(made.prompt_truncated) == [False, True]


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_nan_is_seen_in_latents_and_in_pixels(own_copy: Path, part: str) -> None:
    file = own_copy / part / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    name = "conv_in.weight" if part == "unet" else "decoder.conv_in.weight"
    weights[name] = weights[name] * float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    made = load(own_copy).generate([make_draw(0), make_draw(1)])
    assert not made.finite.any()
    assert made.images_NHWC.dtype == np.uint8


def test_a_guidance_distilled_model_takes_the_scale_as_input_and_no_negative_prompt(tmp_path: Path) -> None:
    model = load(tiny.flux(tmp_path / "flux", guidance_embeds=True))
    weak, strong = (model.generate([make_draw(0, guidance_scale=scale)]).images_NHWC for scale in (1.0, 8.0))
    assert not np.array_equal(weak, strong)
    with pytest.raises(ValueError, match="FluxPipeline takes no negative prompt"):
        model.generate([make_draw(0, negative_prompt="blurry")])


def test_v_prediction_is_taken_from_the_model(tmp_path: Path, loaded: Loaded) -> None:
    velocity = load(tiny.sd(tmp_path / "v", prediction_type="v_prediction"))
    for scheduler in ("default", "dpm++_2m"):
        draw = make_draw(0, scheduler=scheduler)
        assert not np.array_equal(velocity.generate([draw]).images_NHWC, loaded("sd").generate([draw]).images_NHWC)


def test_half_precision_loads_and_draws(model_folder: Callable[[str], Path]) -> None:
    model = load(model_folder("sd"), dtype="bfloat16")
    first, second = model.generate([make_draw(0), make_draw(1)]), model.generate([make_draw(5), make_draw(0)])
    assert first.finite.all()
    assert np.array_equal(first.images_NHWC[0], second.images_NHWC[1])


def test_parts_that_do_not_fit_together_are_one_line(own_copy: Path) -> None:
    file = own_copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_in.weight"] = weights["conv_in.weight"][:8].clone()
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="model my-model: its parts cannot be loaded") as caught:
        load(own_copy)
    assert "\n" not in str(caught.value)


def test_loading_and_drawing_say_nothing(model_folder: Callable[[str], Path], capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(model_folder("sd")).generate([make_draw(0, prompt="word " * 200)])
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


@pytest.mark.parametrize(
    ("pipeline", "fits"),
    [
        ("StableDiffusionPipeline", True),
        ("FluxPipeline", True),
        ("QwenImagePipeline", True),
        ("WanPipeline", False),
        ("TextToVideoSDPipeline", False),
        ("AudioLDM2Pipeline", False),
        ("StableAudioPipeline", False),
        ("KandinskyPipeline", False),
    ],
)
def test_what_makes_video_or_sound_or_needs_more_than_text_is_no_text_to_image_model(pipeline: str, fits: bool) -> None:
    takes = {name: one for name, one in inspect.signature(getattr(tiny.diffusers, pipeline).__call__).parameters.items() if name != "self"}
    assert _makes_more_than_an_image(takes, "text-to-image") is not fits
