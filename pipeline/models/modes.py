"""Which pipeline of diffusers does which mode with the parts of one model folder. Data; imports nothing heavy."""

from collections.abc import Mapping
from typing import Literal

from schemas.modes import MODES, Mode

_FAMILIES: tuple[Mapping[Mode, str], ...] = (
    {
        "text-to-image": "StableDiffusionPipeline",
        "image-to-image": "StableDiffusionImg2ImgPipeline",
        "inpainting": "StableDiffusionInpaintPipeline",
        "control": "StableDiffusionControlNetPipeline",
        "image-prompt": "StableDiffusionPipeline",
    },
    {
        "text-to-image": "StableDiffusionXLPipeline",
        "image-to-image": "StableDiffusionXLImg2ImgPipeline",
        "inpainting": "StableDiffusionXLInpaintPipeline",
        "control": "StableDiffusionXLControlNetPipeline",
        "image-prompt": "StableDiffusionXLPipeline",
    },
    {
        "text-to-image": "StableDiffusion3Pipeline",
        "image-to-image": "StableDiffusion3Img2ImgPipeline",
        "inpainting": "StableDiffusion3InpaintPipeline",
        "control": "StableDiffusion3ControlNetPipeline",
    },
    {
        "text-to-image": "FluxPipeline",
        "image-to-image": "FluxImg2ImgPipeline",
        "inpainting": "FluxInpaintPipeline",
        "control": "FluxControlNetPipeline",
    },
    {
        "text-to-image": "QwenImagePipeline",
        "image-to-image": "QwenImageImg2ImgPipeline",
        "inpainting": "QwenImageInpaintPipeline",
        "control": "QwenImageControlNetPipeline",
    },
    {
        "text-to-image": "ZImagePipeline",
        "image-to-image": "ZImageImg2ImgPipeline",
        "inpainting": "ZImageInpaintPipeline",
    },
    {"text-to-image": "LatentConsistencyModelPipeline", "image-to-image": "LatentConsistencyModelImg2ImgPipeline"},
    {"super-resolution": "StableDiffusionUpscalePipeline"},
    {"super-resolution": "StableDiffusionLatentUpscalePipeline"},
    {"super-resolution": "IFSuperResolutionPipeline"},
)
ENDPOINT_MODES: tuple[Mode, ...] = ("text-to-image", "image-to-image", "inpainting", "outpainting")
"""What a server can be asked for."""

LATENT_UPSCALER = "StableDiffusionLatentUpscalePipeline"

INPUT_SCALE = {"StableDiffusionUpscalePipeline": 4, LATENT_UPSCALER: 2, "IFSuperResolutionPipeline": 4}
"""How much larger than the init image the pipeline's images are."""

CONTROLNETS = {
    "StableDiffusionControlNetPipeline": "ControlNetModel",
    "StableDiffusionXLControlNetPipeline": "ControlNetModel",
    "StableDiffusion3ControlNetPipeline": "SD3ControlNetModel",
    "FluxControlNetPipeline": "FluxControlNetModel",
    "QwenImageControlNetPipeline": "QwenImageControlNetModel",
}
"""Class of the ControlNet that each pipeline takes."""

T2I_ADAPTERS = {
    "StableDiffusionControlNetPipeline": "StableDiffusionAdapterPipeline",
    "StableDiffusionXLControlNetPipeline": "StableDiffusionXLAdapterPipeline",
}
"""What does it instead where the weights are a T2IAdapter's (Mou et al. 2023, arXiv 2302.08453)."""

TAKES_REFERENCES = frozenset(
    {
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionControlNetPipeline",
        "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
        "StableDiffusionXLControlNetPipeline",
        "StableDiffusionXLAdapterPipeline",
    }
)
"""Pipelines that take an IP-Adapter, and so an image as a prompt beside what else conditions theirs."""

RESCALES_GUIDANCE = frozenset(
    {
        "StableDiffusionPipeline",
        "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
        "StableDiffusionXLAdapterPipeline",
        "HunyuanDiTPipeline",
    }
)
"""Pipelines that take a guidance_rescale."""

TRUE_CFG = frozenset(
    {
        "FluxPipeline",
        "FluxImg2ImgPipeline",
        "FluxInpaintPipeline",
        "FluxControlNetPipeline",
        "QwenImagePipeline",
        "QwenImageImg2ImgPipeline",
        "QwenImageInpaintPipeline",
        "QwenImageControlNetPipeline",
    }
)
"""Pipelines that take a true_cfg_scale beside the guidance_scale that is an input of their network, where it is one."""

UNGUIDED = frozenset({"DDPMPipeline", "DDIMPipeline"})
"""Pipelines that draw from noise alone: they read no prompt, so nothing guides them."""

NO_NEGATIVE_PROMPT = frozenset(
    {
        *UNGUIDED,
        "LatentConsistencyModelPipeline",
        "LatentConsistencyModelImg2ImgPipeline",
        "Flux2Pipeline",
        "Flux2KleinPipeline",
        "DiTPipeline",
    }
)
"""Pipelines that take no negative prompt."""

WEIGHS_PROMPTS = frozenset(
    {
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionControlNetPipeline",
        "StableDiffusionAdapterPipeline",
        "StableDiffusionUpscalePipeline",
        "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
        "StableDiffusionXLControlNetPipeline",
        "StableDiffusionXLAdapterPipeline",
    }
)
"""Pipelines whose only text encoders are CLIP's, and which take embeddings: ``pipeline.models.weighted_prompts`` reads for them."""

_Z_IMAGE = ("ZImagePipeline", "ZImageImg2ImgPipeline", "ZImageInpaintPipeline")
_LCM = ("LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline")
OWN_STEPS: dict[str, tuple[str, ...]] = {
    LATENT_UPSCALER: (),
    **dict.fromkeys(_LCM, ("lcm",)),
    **dict.fromkeys((*TRUE_CFG, *_Z_IMAGE, "Flux2Pipeline", "Flux2KleinPipeline"), ("flow_euler",)),
}
"""Pipelines that work out time steps or sigmas themselves, and the samplers beside the model's own that take them."""

UNSCALED = frozenset({"DDPMPipeline", "DiTPipeline", "KandinskyV22CombinedPipeline"})
"""Pipelines that do not scale latents as samplers want them that count noise in sigmas."""

Passes = Literal["without first", "with first", "lists", "two calls"]
_WITHOUT_FIRST = (
    *WEIGHS_PROMPTS,
    "StableDiffusion3Pipeline",
    "StableDiffusion3Img2ImgPipeline",
    "StableDiffusion3InpaintPipeline",
    "StableDiffusion3ControlNetPipeline",
    "PixArtSigmaPipeline",
    "SanaPipeline",
    "HunyuanDiTPipeline",
    "IFPipeline",
    "IFSuperResolutionPipeline",
    "KandinskyV22CombinedPipeline",
    LATENT_UPSCALER,
)
PASSES: dict[str, Passes] = {
    **dict.fromkeys(_WITHOUT_FIRST, "without first"),
    "DiTPipeline": "with first",
    **dict.fromkeys(_Z_IMAGE, "lists"),
    **dict.fromkeys((*TRUE_CFG, "Flux2KleinPipeline"), "two calls"),
}
"""How a pipeline asks its network about all images with and without the prompt; those that are here take a guidance_interval.

In one batch, without the prompt first or with it first, or as lists of so many images, with it first; or in two calls, with it first.
"""

INPAINTING_CHANNELS = (4, 9)
"""Input channels of the U-Nets that the pipelines of diffusers can inpaint with: blended latents, or mask and image as channels."""

BLENDS = "StableDiffusionImg2ImgPipeline"
"""Pipeline that inpaints with other U-Nets, by ``pipeline.models.blend``."""


def pipelines(pipeline_class: str, *, unet_channels: int | None = None) -> dict[Mode, str]:
    """The pipeline for each mode that a folder of this class can be loaded for.

    A text-to-image folder serves all modes of its family; a folder made for one mode (a U-Net with mask channels, an
    upscaler) serves only that one. Inpainting serves outpainting too. Classes that are not listed make images from text.
    ``unet_channels`` are the input channels of the folder's U-Net, if it has one.
    """
    family = next((family for family in _FAMILIES if pipeline_class in family.values()), {"text-to-image": pipeline_class})
    found = dict(family)
    if family.get("text-to-image") != pipeline_class:
        found = {mode: name for mode, name in family.items() if name == pipeline_class}
    if unet_channels is not None and unet_channels not in INPAINTING_CHANNELS:
        found.pop("inpainting", None)
        if found.get("image-to-image") == BLENDS:
            found["inpainting"] = BLENDS
    if "inpainting" in found:
        found["outpainting"] = found["inpainting"]
    return {mode: found[mode] for mode in MODES if mode in found}
