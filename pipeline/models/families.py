"""The kinds of models that can draw, as a table: architecture, what the network predicts, checkpoints to start from.

The table drives no code: whatever pipeline of diffusers makes images from text is driven by its own signature. It says
which kinds are known to work, and feeds ``promptmill models`` and docs/models.md. No torch, no diffusers.
"""

from dataclasses import dataclass

from pipeline.models import samplers
from pipeline.models.folder import diffusers_has


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
    def samplers(self) -> list[str]:
        """Samplers that fit, besides the model's own."""
        return [name for name, sampler in samplers.SAMPLERS.items() if sampler.fits & set(self.predicts)]


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
        note="dev: the scale is an input of the network, no negative prompt; schnell: 1 to 4 steps, guidance_scale 0",
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
        name="FLUX.2 [klein]",
        pipeline="Flux2KleinPipeline",
        predicts=_FLOW,
        checkpoints=(("black-forest-labs/FLUX.2-klein-4B", "Apache-2.0"),),
        note="4 steps, guidance_scale 1; no negative prompt",
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
        note="the prompt is a caption only; one size",
    ),
    Family(
        name="DiT, class-conditional",
        pipeline="DiTPipeline",
        predicts=_EPS,
        checkpoints=(),
        note="the prompt is a class, by number or by a name of the model's id2label; one size",
    ),
)

_PAGE = """# Models

Generated from `pipeline/models/families.py`; `promptmill models` prints it with what this installation can run. `model.id`
takes a hub name or a folder of any pipeline of diffusers that makes images from text: what a pipeline takes is read from
its signature, and what it does not take is refused. The kinds below run in the tests, each as a tiny model from a YAML
file: an image depends on no neighbour, two seeds differ, prompt, negative prompt and guidance count where the model has
them, and `promptmill verify --regenerate` makes the same bytes.

"""


def models_page() -> str:
    """docs/models.md."""
    rows = ["| kind | pipeline of diffusers | predicts | checkpoints (licence) | notes |", "|---|---|---|---|---|"]
    for one in FAMILIES:
        names = "<br>".join(f"`{name}` ({licence})" for name, licence in one.checkpoints)
        rows.append(f"| {one.name} | {one.pipeline} | {', '.join(one.predicts)} | {names} | {one.note} |")
    rest = (
        "\n\nWhich samplers fit a prediction: [samplers.md](samplers.md). Servers that draw (DALL-E 3, gpt-image, vLLM-Omni, SGLang):"
        " [endpoints.md](endpoints.md). Jobs to start from: [configs/models](../configs/models).\n"
    )
    return _PAGE + "\n".join(rows) + rest
