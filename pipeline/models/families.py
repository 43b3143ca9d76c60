"""The kinds of models that can draw, as a table: architecture, what the network predicts, checkpoints to start from.

The table drives no code: whatever pipeline of diffusers makes images from text is driven by its own signature. It says
which kinds are known to work, and feeds ``promptmill models`` and docs/models.md (``models_page``). Modes and samplers of a
kind are read where a job's are refused. No torch, no diffusers.
"""

from dataclasses import dataclass

from pipeline.models import samplers
from pipeline.models.folder import diffusers_has
from pipeline.models.modes import ENDPOINT_MODES, LATENT_UPSCALER, T2I_ADAPTERS, pipelines
from schemas.modes import Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One kind of model.

    ``pipeline`` is the class of diffusers that ``model_index.json`` names. ``predicts`` decides which samplers fit.
    Of each, a tiny model runs through the tests.
    """

    name: str
    pipeline: str
    predicts: tuple[str, ...]
    checkpoints: tuple[tuple[str, str], ...]
    note: str = ""

    @property
    def installed(self) -> bool:
        """Whether the installed diffusers has the pipeline."""
        return diffusers_has(self.pipeline)

    @property
    def modes(self) -> dict[Mode, str]:
        """What a folder of it can be loaded for, and the pipeline that does it."""
        return pipelines(self.pipeline)

    @property
    def samplers(self) -> list[str]:
        """Samplers that fit, besides the model's own."""
        of_each = [samplers.fitting(one, self.pipeline) for one in self.predicts]
        return list(dict.fromkeys(name for names in of_each for name in names))


_RAIL, _STABILITY, _FLUX_DEV = "CreativeML OpenRAIL-M", "Stability AI Community", "FLUX.1 [dev] Non-Commercial"
_EPS, _FLOW = ("epsilon",), ("flow",)

FAMILIES: tuple[Family, ...] = (
    Family(
        name="Stable Diffusion 1 and 2",
        pipeline="StableDiffusionPipeline",
        predicts=("epsilon", "v_prediction"),
        checkpoints=(("stable-diffusion-v1-5/stable-diffusion-v1-5", _RAIL),),
    ),
    Family(
        name="Stable Diffusion XL, Turbo, Lightning",
        pipeline="StableDiffusionXLPipeline",
        predicts=_EPS,
        checkpoints=(("stabilityai/stable-diffusion-xl-base-1.0", "CreativeML Open RAIL++-M"), ("stabilityai/sdxl-turbo", _STABILITY)),
        note="Turbo and Lightning: 1 to 8 steps, guidance_scale 0",
    ),
    Family(
        name="Latent consistency models",
        pipeline="LatentConsistencyModelPipeline",
        predicts=_EPS,
        checkpoints=(("SimianLuo/LCM_Dreamshaper_v7", "MIT"),),
        note="1 to 8 steps; the scale is an input of the network, no negative prompt",
    ),
    Family(
        name="Stable Diffusion 3 and 3.5",
        pipeline="StableDiffusion3Pipeline",
        predicts=_FLOW,
        checkpoints=(("stabilityai/stable-diffusion-3.5-medium", _STABILITY),),
    ),
    Family(
        name="FLUX.1",
        pipeline="FluxPipeline",
        predicts=_FLOW,
        checkpoints=(("black-forest-labs/FLUX.1-schnell", "Apache-2.0"), ("black-forest-labs/FLUX.1-dev", _FLUX_DEV)),
        note="dev: the scale is an input of the network, negative prompts need true_cfg_scale; schnell: 1 to 4 steps, guidance_scale 0",
    ),
    Family(
        name="PixArt-Sigma",
        pipeline="PixArtSigmaPipeline",
        predicts=_EPS,
        checkpoints=(("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", "CreativeML Open RAIL++-M"),),
    ),
    Family(
        name="Qwen-Image",
        pipeline="QwenImagePipeline",
        predicts=_FLOW,
        checkpoints=(("Qwen/Qwen-Image", "Apache-2.0"),),
        note="images are drawn one by one: a batch would pad texts to its longest, which changes the last bits",
    ),
    Family(
        name="Z-Image",
        pipeline="ZImagePipeline",
        predicts=_FLOW,
        checkpoints=(("Tongyi-MAI/Z-Image-Turbo", "Apache-2.0"),),
        note="Turbo: 8 or 9 steps, guidance_scale 0; images are drawn one by one, as of Qwen-Image",
    ),
    Family(
        name="FLUX.2 [dev]",
        pipeline="Flux2Pipeline",
        predicts=_FLOW,
        checkpoints=(("black-forest-labs/FLUX.2-dev", "FLUX [dev] Non-Commercial"),),
        note="the scale is an input of the network; no negative prompt",
    ),
    Family(
        name="FLUX.2 [klein]",
        pipeline="Flux2KleinPipeline",
        predicts=_FLOW,
        checkpoints=(("black-forest-labs/FLUX.2-klein-4B", "Apache-2.0"),),
        note="4 steps, and guidance_scale 1, else it is refused, where the model is distilled; no negative prompt",
    ),
    Family(
        name="Sana",
        pipeline="SanaPipeline",
        predicts=_FLOW,
        checkpoints=(("Efficient-Large-Model/Sana_1600M_1024px_diffusers", "NVIDIA Source Code License"),),
    ),
    Family(
        name="HunyuanDiT",
        pipeline="HunyuanDiTPipeline",
        predicts=("epsilon", "v_prediction"),
        checkpoints=(("Tencent-Hunyuan/HunyuanDiT-v1.2-Diffusers", "Tencent Hunyuan Community"),),
    ),
    Family(
        name="Kandinsky 2.2 (prior and decoder, as DALL-E 2)",
        pipeline="KandinskyV22CombinedPipeline",
        predicts=_EPS,
        checkpoints=(),
        note="both parts in one folder: KandinskyV22CombinedPipeline.save_pretrained; an empty negative prompt is a text, not zeros",
    ),
    Family(
        name="DeepFloyd IF, first stage (pixels, as Imagen)",
        pipeline="IFPipeline",
        predicts=_EPS,
        checkpoints=(("DeepFloyd/IF-I-M-v1.0", "DeepFloyd IF License"),),
    ),
    Family(
        name="DDPM, unconditional",
        pipeline="DDPMPipeline",
        predicts=_EPS,
        checkpoints=(),
        note="the prompt is a caption only, and nothing is guided; one size",
    ),
    Family(
        name="DiT, class-conditional",
        pipeline="DiTPipeline",
        predicts=_EPS,
        checkpoints=(),
        note="the prompt is a class, by number or by a name of the model's id2label; one size",
    ),
)

FOR_ONE_MODE: tuple[Family, ...] = (
    Family(
        name="Stable Diffusion inpainting",
        pipeline="StableDiffusionInpaintPipeline",
        predicts=_EPS,
        checkpoints=(("stable-diffusion-v1-5/stable-diffusion-inpainting", _RAIL),),
        note="the U-Net reads mask and image as channels",
    ),
    Family(
        name="Stable Diffusion XL inpainting",
        pipeline="StableDiffusionXLInpaintPipeline",
        predicts=_EPS,
        checkpoints=(("diffusers/stable-diffusion-xl-1.0-inpainting-0.1", "CreativeML Open RAIL++-M"),),
        note="as above",
    ),
    Family(
        name="Stable Diffusion XL refiner",
        pipeline="StableDiffusionXLImg2ImgPipeline",
        predicts=_EPS,
        checkpoints=(("stabilityai/stable-diffusion-xl-refiner-1.0", "CreativeML Open RAIL++-M"),),
        note="or as `model.second_stage`",
    ),
    Family(
        name="Stable Diffusion x4 upscaler",
        pipeline="StableDiffusionUpscalePipeline",
        predicts=("v_prediction",),
        checkpoints=(("stabilityai/stable-diffusion-x4-upscaler", "CreativeML Open RAIL++-M"),),
        note="or as `model.second_stage`",
    ),
    Family(
        name="Stable Diffusion x2 latent upscaler",
        pipeline=LATENT_UPSCALER,
        predicts=("sample",),
        checkpoints=(("stabilityai/sd-x2-latent-upscaler", "CreativeML Open RAIL++-M"),),
        note="or as `model.second_stage`; its own sampler only",
    ),
    Family(
        name="DeepFloyd IF, second stage",
        pipeline="IFSuperResolutionPipeline",
        predicts=_EPS,
        checkpoints=(("DeepFloyd/IF-II-M-v1.0", "DeepFloyd IF License"),),
        note="as `model.second_stage` of the first, with whose T5 it reads",
    ),
)
"""Models that were made for one mode and serve no other. The first two inpaint, hence outpaint too."""

SERVER = "a server (OpenAI's images API)"

MORE_MODES: tuple[Mode, ...] = ("image-to-image", "inpainting", "outpainting", "control", "image-prompt")
"""Modes that a text-to-image model may do besides."""


def more_modes(*, here: bool = False) -> list[tuple[str, list[str]]]:
    """Kinds that do more than text-to-image, a server too, each with a cell for each of MORE_MODES: yes, by what, or empty.

    ``here``: "no" where the installed diffusers has not the pipeline.
    """
    rows = [(one.name, [_cell(mode, one.modes.get(mode), here=here) for mode in MORE_MODES]) for one in FAMILIES]
    rows.append((SERVER, ["yes" if mode in ENDPOINT_MODES else "" for mode in MORE_MODES]))
    return [(name, cells) for name, cells in rows if any(cells)]


def _cell(mode: Mode, pipeline: str | None, *, here: bool) -> str:
    if pipeline is None:
        return ""
    if here and not diffusers_has(pipeline):
        return "no"
    if mode == "control":
        return "ControlNet, T2I-Adapter" if pipeline in T2I_ADAPTERS else "ControlNet"
    return "IP-Adapter" if mode == "image-prompt" else "yes"
