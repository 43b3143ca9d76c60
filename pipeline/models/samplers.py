"""Samplers by the names that people know: which diffusers scheduler each is, and which models it fits.

diffusers itself lets any scheduler run with any model; SD3 with DDIM runs too, and is wrong. So every sampler
names the predictions that it can step with. Samplers whose noise ignores the image's own generator are left
out (``DPMSolverSDEScheduler`` seeds a Brownian tree of its own): an image must be a function of its draw.
"""

import difflib
import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.models.modes import OWN_STEPS, UNSCALED

NOISE = frozenset({"epsilon", "v_prediction"})
ANY = NOISE | {"sample"}
FLOW = frozenset({"flow"})
EDM = frozenset({"edm"})
NO_ZERO_SNR = frozenset({"lms", "heun", "dpm2", "dpm2_a", "dpm++_2m_sde_karras"})
"""Samplers that cannot start from pure noise, where a schedule rescaled to zero signal ends (Lin et al. 2024, arXiv 2305.08891).

Of 16 draws of the bundled model at 24 steps the judge finds 12, 0, 0, 0 and 5 right; with those that remain 14 to 16.
"""
IN_SIGMAS = frozenset({"lms", "euler", "euler_a", "heun", "dpm2", "dpm2_a"})
"""Samplers whose latents grow with the noise: the pipeline must start them at ``init_noise_sigma`` and scale what the network is shown."""
SEED_IGNORED = ("DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """One row of the table.

    ``scheduler`` is a class of diffusers, made from the model's own scheduler configuration and ``overrides``.
    ``fits`` are predictions. ``stochastic`` samplers add noise at each step, from the image's own generator.
    """

    scheduler: str
    fits: frozenset[str]
    stochastic: bool = False
    overrides: Mapping[str, object] = field(default_factory=dict)
    source: str = ""


_PAGE = """# Samplers

Generated from `pipeline/models/samplers.py`. `sampling.scheduler` takes these names; `default` is the model's own.
"Models" are those whose network predicts what the sampler can step with: noise (`epsilon`), velocity (`v_prediction`),
the image (`sample`), or a flow; `edm` models have a noise schedule of their own kind. Any other pair is refused:
diffusers would run it and draw something wrong. Refused are also
`lms`, `heun`, `dpm2`, `dpm2_a` and `dpm++_2m_sde_karras` for models whose noise schedule ends in pure noise
(`rescale_betas_zero_snr`), such as the bundled one: of 16 draws of it, 12, 0, 0, 0 and 5 came out right, with the others 14 or
more. Pipelines that work out the steps themselves leave less choice: latent consistency models take `lcm`; FLUX, Qwen-Image and Z-Image
`flow_euler`; the x2 upscaler its own alone. Those of Kandinsky 2.2, DDPM and DiT do not scale latents as `lms`, `euler`, `euler_a`, `heun`,
`dpm2` and `dpm2_a` need it. Noise that a sampler adds comes from the image's own generator, so an image can always be made again alone.

"""


def _dpm(algorithm: str, *, karras: bool = False, order: int = 2) -> dict[str, object]:
    return {"algorithm_type": algorithm, "solver_order": order, "use_karras_sigmas": karras, "final_sigmas_type": "zero"}


_MULTISTEP, _SINGLESTEP = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
_DPMPP, _KDPM, _FLOW = "Lu et al. 2022, arXiv 2211.01095", "Karras et al. 2022, arXiv 2206.00364", "Lipman et al. 2023, arXiv 2210.02747"

SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler(scheduler="DDPMScheduler", fits=ANY, stochastic=True, source="Ho et al. 2020, arXiv 2006.11239"),
    "ddim": Sampler(scheduler="DDIMScheduler", fits=ANY, source="Song et al. 2021, arXiv 2010.02502"),
    "pndm": Sampler(scheduler="PNDMScheduler", fits=NOISE, overrides={"skip_prk_steps": True}, source="Liu et al. 2022, arXiv 2202.09778"),
    "lms": Sampler(scheduler="LMSDiscreteScheduler", fits=NOISE, source="k-diffusion"),
    "euler": Sampler(scheduler="EulerDiscreteScheduler", fits=NOISE, source=_KDPM),
    "euler_a": Sampler(scheduler="EulerAncestralDiscreteScheduler", fits=NOISE, stochastic=True, source="k-diffusion"),
    "heun": Sampler(scheduler="HeunDiscreteScheduler", fits=NOISE, source=_KDPM),
    "dpm2": Sampler(scheduler="KDPM2DiscreteScheduler", fits=NOISE, source=_KDPM),
    "dpm2_a": Sampler(scheduler="KDPM2AncestralDiscreteScheduler", fits=NOISE, stochastic=True, source="k-diffusion"),
    "dpm++_2m": Sampler(scheduler=_MULTISTEP, fits=ANY, overrides=_dpm("dpmsolver++"), source=_DPMPP),
    "dpm++_2m_karras": Sampler(scheduler=_MULTISTEP, fits=ANY, overrides=_dpm("dpmsolver++", karras=True), source=_DPMPP),
    "dpm++_2m_sde": Sampler(scheduler=_MULTISTEP, fits=ANY, stochastic=True, overrides=_dpm("sde-dpmsolver++"), source=_DPMPP),
    "dpm++_2m_sde_karras": Sampler(
        scheduler=_MULTISTEP, fits=ANY, stochastic=True, overrides=_dpm("sde-dpmsolver++", karras=True), source=_DPMPP
    ),
    "dpm++_2s": Sampler(scheduler=_SINGLESTEP, fits=ANY, overrides=_dpm("dpmsolver++"), source=_DPMPP),
    "dpm++_sde": Sampler(scheduler=_SINGLESTEP, fits=ANY, stochastic=True, overrides=_dpm("sde-dpmsolver++"), source=_DPMPP),
    "unipc": Sampler(scheduler="UniPCMultistepScheduler", fits=ANY, source="Zhao et al. 2023, arXiv 2302.04867"),
    "deis": Sampler(scheduler="DEISMultistepScheduler", fits=ANY, source="Zhang & Chen 2023, arXiv 2204.13902"),
    "lcm": Sampler(scheduler="LCMScheduler", fits=ANY, stochastic=True, source="Luo et al. 2023, arXiv 2310.04378"),
    "tcd": Sampler(scheduler="TCDScheduler", fits=ANY, source="Zheng et al. 2024, arXiv 2402.19159, gamma 0"),
    "edm": Sampler(scheduler="EDMEulerScheduler", fits=EDM, source=_KDPM),
    "edm_dpm++_2m": Sampler(scheduler="EDMDPMSolverMultistepScheduler", fits=EDM, source=_DPMPP),
    "flow_euler": Sampler(scheduler="FlowMatchEulerDiscreteScheduler", fits=FLOW, overrides={"stochastic_sampling": False}, source=_FLOW),
    "flow_heun": Sampler(scheduler="FlowMatchHeunDiscreteScheduler", fits=FLOW, source=_FLOW),
}


def nearest(name: str) -> str | None:
    """The known sampler that a misspelled name most probably means."""
    found = difflib.get_close_matches(name.lower().replace(" ", "_").replace("-", "_"), ["default", *SAMPLERS], n=1, cutoff=0.4)
    return found[0] if found else None


_GUIDANCE = """## Guidance

`sampling.guidance_scale` above 1 asks the model twice at each step, with the prompt and without it, or with the negative prompt. Models
that were distilled from guided ones (FLUX.1-dev, latent consistency models) take the scale as an input of their network and are asked once,
so they read no negative prompt. Z-Image counts from 0: its 3 pushes as far as 4 does elsewhere; 1 or less is off, as everywhere.
What may be set besides:

- `true_cfg_scale`, for FLUX.1-dev in all modes: above 1 it is asked twice all the same, in twice the time, and reads the negative prompt.
- `guidance_rescale`, for Stable Diffusion 1, 2 and XL and HunyuanDiT: less contrast where the scale is high.
- `guidance_interval: [0.2, 0.8]`: guidance in that part of the steps only. Of 20 steps these are the 5th to the 16th; the others ask the
  model once, so 8 of 40 passes are saved. For all models that are asked twice, in all modes; of Kandinsky 2.2 in its decoder, not in its
  prior; in a second stage guidance is for all steps. Where the scale is an input there is no pass to leave out: FLUX.1-dev needs a
  `true_cfg_scale` too, latent consistency models refuse it. Shares are of the steps that are made: with a `strength` of 0.5, of that half.

Each is refused where a model does not take it, and so is a negative prompt that would not be read. DDPM draws from noise alone, which
nothing guides: its rows keep the default `guidance_scale`, which has no effect, and another one above 1 is refused.
"""


def fitting(prediction: str, pipeline_class: str = "", *, zero_snr: bool = False) -> list[str]:
    """Names of the samplers that can step with a model's prediction, with latents and steps as its pipeline hands them over, and from pure
    noise where the model's schedule ends there."""
    found = [name for name in OWN_STEPS.get(pipeline_class, SAMPLERS) if prediction in SAMPLERS[name].fits]
    left_out = (NO_ZERO_SNR if zero_snr else frozenset()) | (IN_SIGMAS if pipeline_class in UNSCALED else frozenset())
    return [name for name in found if name not in left_out]


def make_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """The diffusers scheduler of a sampler, with the noise schedule of ``config``, the model's own scheduler configuration."""
    import diffusers

    sampler = SAMPLERS[name]
    kind = getattr(diffusers, sampler.scheduler)
    # DDIM and DDPM clip to [-1, 1] unless told otherwise: right for pixels, wrong for latents
    unclipped = {"clip_sample": False} if "clip_sample" in inspect.signature(kind.__init__).parameters else {}
    settings = unclipped | dict(config)
    if str(config.get("variance_type", "")).startswith("learned") and sampler.scheduler != "DDPMScheduler":
        settings["variance_type"] = None  # else pipelines hand on the learned variance with the noise, which only DDPM takes apart
    return _from_the_first_step(kind.from_config(settings, **sampler.overrides))


def _from_the_first_step(scheduler: Any) -> Any:
    """Begin at step 0 by number: looked up by time step, which Karras sigmas round to equal integers, it can be step 1."""
    if not hasattr(scheduler, "set_begin_index"):
        return scheduler
    set_timesteps = scheduler.set_timesteps

    @functools.wraps(set_timesteps)
    def set_and_begin(*args: Any, **settings: Any) -> None:
        set_timesteps(*args, **settings)
        scheduler.set_begin_index(0)

    scheduler.set_timesteps = set_and_begin
    return scheduler


def samplers_page() -> str:
    """docs/samplers.md."""
    rows = ["| name | scheduler of diffusers | settings | adds noise | models | source |", "|---|---|---|---|---|---|"]
    for name, sampler in SAMPLERS.items():
        settings = ", ".join(f"{key}={value}" for key, value in sampler.overrides.items()) or "the model's own"
        noise, fits = "yes" if sampler.stochastic else "no", ", ".join(sorted(sampler.fits))
        rows.append(f"| `{name}` | {sampler.scheduler} | {settings} | {noise} | {fits} | {sampler.source} |")
    return _PAGE + "\n".join(rows) + "\n\n" + _GUIDANCE
