"""How a model is guided, told from its folder, and which settings of guidance that leaves a job. No torch, no diffusers.

Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598) asks the network a second time at each step, without the prompt. Models that
were distilled from guided ones (Meng et al. 2023, arXiv 2210.03142) take the scale as an input and are asked once, so that they read no
negative prompt, unless ``true_cfg_scale`` has them asked twice all the same.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pipeline.models.modes import LATENT_UPSCALER, NO_NEGATIVE_PROMPT, PASSES, RESCALES_GUIDANCE, TRUE_CFG, UNGUIDED
from schemas.config import SamplingConfig
from schemas.errors import ModelError
from schemas.records import Draw

if TYPE_CHECKING:
    from pipeline.models.resolve import ModelCard

Guidance = Literal["second pass", "input", "none"]
"""What a model does with a guidance_scale; none: it was distilled to draw in a few steps, without guidance."""


def guidance_of(pipeline_class: str, index: Mapping[str, Any], configs: Mapping[str, Mapping[str, Any]]) -> Guidance:
    """How a model is guided, by its ``model_index.json`` and the configurations of its components."""
    if index.get("is_distilled"):
        return "none"
    core = configs.get("transformer") or configs.get("unet") or {}
    embedded = core.get("guidance_embeds", core.get("_class_name") == "Flux2Transformer2DModel")  # whose default it is
    # the latent upscaler is told there how noisy its image is
    conditioned = core.get("time_cond_proj_dim") is not None and pipeline_class != LATENT_UPSCALER
    return "input" if embedded or conditioned else "second pass"


def second_pass_scale(guidance: Guidance, draw: Draw) -> float:
    """Scale of the second pass, without the prompt; there is none at 1 or less."""
    return (draw.true_cfg_scale or 1.0) if guidance == "input" else draw.guidance_scale


def check_guidance(card: "ModelCard", sampling: SamplingConfig, where: str) -> None:
    """Raise ModelError, starting with ``where``, for a setting of guidance that the model cannot take or would not heed."""
    model = _named(card)
    guided_by = [name for name in ("guidance_scale", "true_cfg_scale") if getattr(sampling, name) > 1]
    if card.guidance == "none" and guided_by:
        raise ModelError(f"{where}sampling.{guided_by[0]}: {model} was distilled to draw without guidance; set it to 1")
    given = [name for name in guided_by if getattr(sampling, name) != SamplingConfig.model_fields[name].default]
    if card.pipeline_class in UNGUIDED and given:  # the default stays: it is part of the ids of all draws that were made with it
        raise ModelError(f"{where}sampling.{given[0]}: {model} draws from noise alone, which nothing guides; take it out")
    if sampling.true_cfg_scale > 1 and card.guidance != "input":
        raise ModelError(f"{where}sampling.true_cfg_scale: {model} is guided by guidance_scale; set that one instead")
    if sampling.true_cfg_scale > 1 and card.pipeline_class not in TRUE_CFG:
        raise ModelError(f"{where}sampling.true_cfg_scale: {model} cannot be asked twice a step; take it out")
    if sampling.guidance_rescale and card.pipeline_class not in RESCALES_GUIDANCE:
        raise ModelError(f"{where}sampling.guidance_rescale: {model} does not take it; take it out")
    if sampling.guidance_interval and (instead := _if_asked_once(card, sampling)):
        raise ModelError(f"{where}sampling.guidance_interval: {instead}take it out")
    if sampling.guidance_interval and card.pipeline_class not in PASSES:
        raise ModelError(f"{where}sampling.guidance_interval: {model} does not take it; take it out")
    if sampling.negative_prompt:
        _check_negative_prompt(card, sampling, where)


def _check_negative_prompt(card: "ModelCard", sampling: SamplingConfig, where: str) -> None:
    """Also of a second stage, which is given the same."""
    if card.pipeline_class in NO_NEGATIVE_PROMPT:
        raise ModelError(f"{where}sampling.negative_prompt: {_named(card)} takes none; leave it empty")
    if instead := _if_asked_once(card, sampling):
        raise ModelError(f"{where}sampling.negative_prompt: {instead}leave it empty")
    if card.second_stage:
        _check_negative_prompt(card.second_stage, sampling, f"{where}model.second_stage: ")


def _if_asked_once(card: "ModelCard", sampling: SamplingConfig) -> str:
    """Why there is no second pass, and how to get one; empty where there may be one."""
    if card.guidance != "input" or (sampling.true_cfg_scale > 1 and card.pipeline_class in TRUE_CFG):
        return ""
    instead = "set sampling.true_cfg_scale above 1, or " if card.pipeline_class in TRUE_CFG else ""
    return f"{_named(card)} takes guidance_scale as an input of its network, which is asked once a step; {instead}"


def _named(card: "ModelCard") -> str:
    return f"{card.name} ({card.pipeline_class})"
