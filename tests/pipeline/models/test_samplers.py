"""Every sampler of the table is the one that it claims to be, and obeys the image's own generator."""

import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.models import samplers
from tests.pipeline.models import tiny

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning:numpy")  # KDPM2 with numpy 2
X0 = torch.linspace(-0.8, 0.8, 64).reshape(1, 1, 8, 8)  # the one image that the oracle network knows
CASES = [(name, prediction) for name, sampler in samplers.SAMPLERS.items() for prediction in sorted(sampler.fits)]


def model_config(prediction: str) -> dict[str, Any]:
    """Configuration of a model's own scheduler."""
    if prediction == "flow":
        return dict(tiny.diffusers.FlowMatchEulerDiscreteScheduler().config)
    if prediction == "edm":
        return dict(tiny.diffusers.EDMEulerScheduler().config)
    return dict(tiny.scheduler(prediction).config)


def oracle(scheduler: Any, prediction: str, model_input: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """What a perfect network predicts when X0 is all that there is to draw."""
    if prediction == "flow":
        return (model_input - X0) / (t / 1000)
    if prediction == "edm":
        sigma, data = math.exp(4 * float(t)), scheduler.config.sigma_data
        x = model_input * (sigma**2 + data**2) ** 0.5
        return (X0 - x * data**2 / (sigma**2 + data**2)) * (sigma**2 + data**2) ** 0.5 / (sigma * data)
    position = min(max(float(t), 0), 999)
    low, high = math.floor(position), math.ceil(position)
    log_sigma = [0.5 * math.log((1 - a) / a) for a in (float(scheduler.alphas_cumprod[low]), float(scheduler.alphas_cumprod[high]))]
    sigma = math.exp(log_sigma[0] + (position - low) * (log_sigma[1] - log_sigma[0]))
    alpha = 1 / (1 + sigma**2) ** 0.5
    noise = (model_input - alpha * X0) / (alpha * sigma)
    if prediction == "sample":
        return X0.expand_as(model_input)
    return noise if prediction == "epsilon" else alpha * noise - alpha * sigma * X0


def sample(name: str, prediction: str, seeds: list[int], steps: int = 12) -> torch.Tensor:
    """Draw with the oracle; one generator per image, as the pipelines do."""
    scheduler = samplers.make_scheduler(name, model_config(prediction))
    scheduler.set_timesteps(steps)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    latents = torch.cat([torch.randn(1, 1, 8, 8, generator=one) for one in generators]) * getattr(scheduler, "init_noise_sigma", 1.0)
    named = inspect.signature(scheduler.step).parameters
    extra = ({"generator": generators} if "generator" in named else {}) | ({"eta": 0.0} if "eta" in named else {})
    for t in scheduler.timesteps:
        model_input = scheduler.scale_model_input(latents, t) if hasattr(scheduler, "scale_model_input") else latents
        latents = scheduler.step(oracle(scheduler, prediction, model_input, t), t, latents, **extra).prev_sample
    return latents


@pytest.mark.parametrize(("name", "prediction"), CASES)
def test_a_sampler_draws_what_a_perfect_network_knows(name: str, prediction: str) -> None:
    drawn = sample(name, prediction, [1, 2])
    assert torch.isfinite(drawn).all()
    assert (drawn - X0).abs().mean() < 0.06


@pytest.mark.parametrize(("name", "prediction"), CASES)
def test_noise_comes_from_the_image_s_own_generator(name: str, prediction: str) -> None:
    first = sample(name, prediction, [1, 2, 3], steps=4)
    torch.manual_seed(99)  # whatever the global generator does
    second = sample(name, prediction, [7, 8, 1], steps=4)
    assert torch.equal(first[0], second[2])


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_the_table_says_whether_a_sampler_adds_noise(name: str) -> None:
    prediction = sorted(samplers.SAMPLERS[name].fits)[0]
    scheduler = samplers.make_scheduler(name, model_config(prediction))
    scheduler.set_timesteps(6)
    generator = torch.Generator("cpu").manual_seed(3)
    before, latents = generator.get_state(), torch.randn(1, 1, 8, 8) * getattr(scheduler, "init_noise_sigma", 1.0)
    named = inspect.signature(scheduler.step).parameters
    extra = ({"generator": generator} if "generator" in named else {}) | ({"eta": 0.0} if "eta" in named else {})
    used = False
    for t in scheduler.timesteps:
        model_input = scheduler.scale_model_input(latents, t) if hasattr(scheduler, "scale_model_input") else latents
        stepped = scheduler.step(oracle(scheduler, prediction, model_input, t), t, latents, **extra).prev_sample
        used |= not torch.equal(before, generator.get_state())
        latents = stepped
    assert used == samplers.SAMPLERS[name].stochastic


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("dpm++2m", "dpm++_2m"), ("eulera", "euler_a"), ("Euler", "euler"), ("DPM++ 2M Karras", "dpm++_2m_karras"), ("defualt", "default")],
)
def test_a_misspelled_name_finds_the_nearest(typed: str, meant: str) -> None:
    assert samplers.nearest(typed) == meant


def test_the_page_of_the_docs_is_the_table() -> None:
    page = Path(__file__).parents[3] / "docs" / "samplers.md"
    assert page.read_text(encoding="utf-8") == samplers.samplers_page()


@pytest.mark.parametrize("name", ["ddim", "ddpm", "lcm", "tcd"])
def test_latents_are_not_clipped_where_the_model_does_not_say(name: str) -> None:
    config = {key: value for key, value in model_config("epsilon").items() if not key.startswith("clip_sample")}
    assert samplers.make_scheduler(name, config).config.clip_sample is False
    assert samplers.make_scheduler(name, config | {"clip_sample": True}).config.clip_sample is True


@pytest.mark.parametrize("name", ["dpm++_2m_karras", "dpm++_2m_sde_karras"])
@pytest.mark.parametrize("steps", [5, 26, 50])
def test_sampling_begins_at_the_first_step_though_time_steps_round_to_equal_integers(name: str, steps: int) -> None:
    config = dict(tiny.diffusers.DPMSolverMultistepScheduler(beta_schedule="squaredcos_cap_v2", rescale_betas_zero_snr=True).config)
    scheduler = samplers.make_scheduler(name, config | {"timestep_spacing": "trailing"})
    scheduler.set_timesteps(steps)
    latents = torch.ones(1, 1, 8, 8)
    for t in scheduler.timesteps:
        latents = scheduler.step(0.5 * latents, t, latents, generator=torch.Generator().manual_seed(0)).prev_sample
    assert scheduler.step_index == steps
    assert torch.isfinite(latents).all()
