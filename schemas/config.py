"""The one input of a job: ``JobConfig``, read from YAML, every field described, unknown keys refused.

Input paths are relative to the configuration file; ``output.dir`` is relative to the current folder.
"""

import math
import os
import re
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, field_validator, model_validator

from schemas.modes import ROLES, STRENGTH, Mode, column

SAMPLING_COLUMNS = (
    "steps",
    "guidance_scale",
    "true_cfg_scale",
    "guidance_rescale",
    "strength",
    "control_scale",
    "reference_scale",
    "width",
    "height",
)
"""Fields of ``sampling`` that a prompt may set for itself."""

AttentionBackend = Literal[
    "native",
    "native_math",
    "native_flash",
    "native_efficient",
    "native_cudnn",
    "flex",
    "flash",
    "flash_3",
    "sage",
    "xformers",
]
"""Kernels that diffusers can use without downloading code."""

PROMPT_COLUMNS = ("id", "prompt", "negative_prompt", "label", *SAMPLING_COLUMNS, *map(column, ROLES))
"""Columns of a prompt source that are not tags."""


def in_folder(base_dir: Path, path: str) -> Path:
    """Where a path of a configuration lies: in the folder of its file unless it is absolute; ``~`` is the home folder."""
    return base_dir / os.path.expanduser(path)  # pathlib's raises for ~x, which may be a file's name


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, no silent conversion of types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _shorthand(key: str) -> BeforeValidator:
    """Let a bare value stand for ``{key: value}``."""
    return BeforeValidator(lambda value: value if isinstance(value, dict | BaseModel) else {key: value})


class ValueConfig(Section):
    """One value of a template's variable."""

    text: str = Field(description="text in the prompt")
    label: str | None = Field(default=None, description="label of the prompts that have it, for `prompts.label`; the text if not given")
    weight: float = Field(default=1.0, gt=0, description="how often it is taken, against the others, when combinations are sampled")


class ServerConfig(Section):
    """A server that answers requests over HTTP: where it is, and how hard it may be asked."""

    OWN: ClassVar[frozenset[str]] = frozenset()  # fields of a request that are not the user's

    url: str = Field(description="base of the API, such as https://api.openai.com/v1 or http://127.0.0.1:8000/v1")
    request: dict[str, JsonValue] = Field(
        default_factory=dict, description="further fields of each request, sent as they are, such as {quality: high} or {temperature: 1}"
    )
    api_key_variable: str | None = Field(
        default=None, description="name of the environment variable that holds the key, such as OPENAI_API_KEY; who asks reads it"
    )
    concurrency: int = Field(default=4, ge=1, le=256, description="requests at once")
    requests_per_minute: float | None = Field(default=None, gt=0, description="requests are spaced out to keep below it")
    timeout_seconds: float = Field(default=180.0, gt=0, description="for one request, from sending it to the last byte of its answer")
    max_tries: int = Field(default=6, ge=1, description="tries at one answer where the server is busy, broken or silent")

    @field_validator("url")
    @classmethod
    def _http(cls, url: str) -> str:
        if not re.fullmatch(r"https?://[^\s/?#@]+[^\s?#@]*", url):
            raise ValueError("must be a URL such as https://api.openai.com/v1, without a user, a password, '?' or '#'")
        return url.rstrip("/")

    @field_validator("api_key_variable")
    @classmethod
    def _name_of_a_variable(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
            raise ValueError("must be the name of an environment variable, such as OPENAI_API_KEY; never the key itself")
        return name

    @field_validator("request")
    @classmethod
    def _own_fields(cls, request: dict[str, JsonValue]) -> dict[str, JsonValue]:
        taken = sorted(set(request) & cls.OWN)
        if taken:
            raise ValueError(f"{taken[0]!r} is set by promptmill; take it out")
        return request


class EndpointConfig(ServerConfig):
    """A server that speaks OpenAI's images API; ``model.id`` is then the model's name there.

    Only ``url``, ``dialect``, ``response_format`` and ``request`` are part of the job's identity. Limits hold for each worker, which
    asks for no more than ``sampling.batch_size`` images at once.
    """

    OWN = frozenset({"model", "prompt", "n", "size", "response_format", "stream"})

    dialect: Literal["openai", "diffusion"] = Field(
        default="openai",
        description="'openai' sends prompt and size; 'diffusion' also seed, num_inference_steps, guidance_scale, true_cfg_scale,"
        " negative_prompt and strength (vLLM-Omni, SGLang). What is not sent is refused",
    )
    response_format: Literal["b64_json", "url"] | None = Field(
        default="b64_json", description="how images come back; null leaves the field out, as gpt-image models want"
    )
    price_per_image: float = Field(default=0.0, ge=0, description="of one answered request, in any currency; adds up in the commit markers")


class ExpandConfig(ServerConfig):
    """Each prompt of the source becomes ``count`` prompts, written by a language model behind OpenAI's chat API, which is asked once.

    ``model``, ``instruction``, ``count``, ``keep_original`` and ``request`` are part of the job's identity; where the server is, is not.
    """

    OWN = frozenset({"model", "messages", "n", "stream"})

    model: str = Field(min_length=1, description="the language model's name on the server")
    count: int = Field(default=4, ge=1, le=100, description="prompts to write of each")
    instruction: str = Field(
        default="Rewrite the prompt of a text-to-image model into {count} more detailed ones that differ from each other in setting,"
        " light, viewpoint and style. Keep every object, number, colour and position that it names, and add no further objects.",
        min_length=1,
        description="what the model is told; {count} stands for the number. How to answer is added to it",
    )
    keep_original: bool = Field(default=False, description="draw the prompt of the source too")
    max_requests: int = Field(default=1000, ge=1, description="more requests than that in one go are refused, before the first is sent")


class PromptsConfig(Section):
    """Where prompts come from: exactly one of ``file``, ``texts`` and ``template``."""

    file: str | None = Field(
        default=None,
        description="txt (a prompt per line), csv, jsonl, parquet, or the folder of a dataset's save_to_disk;"
        " columns: prompt (id, negative_prompt, label); others become tags",
    )
    texts: list[str] | None = Field(default=None, description="prompts written here")
    template: str | list[str] | None = Field(
        default=None, description="one or more texts with slots, such as 'a {size} {red|blue} __thing__'; see docs/templates.md"
    )
    variables: dict[str, list[str | int | float | ValueConfig]] = Field(
        default_factory=dict, description="values of the template's variables; each becomes a tag of its prompts"
    )
    wildcards: str = Field(default="wildcards", description="folder of the template's __name__ files, name.txt, a value per line")
    label: str | None = Field(default=None, description="slot of the template whose value is the prompt's label")
    sample: int | None = Field(default=None, ge=1, description="draw so many combinations by weight, instead of making all of them")
    per_label: int | None = Field(default=None, ge=1, description="draw so many combinations for each value of `label`")
    sample_seed: int = Field(default=0, ge=0, description="seed of the drawn combinations")
    max_prompts: int = Field(default=100_000, ge=1, description="a template that makes more is refused")
    blocklist: list[Annotated[str, Field(pattern=r"\S")]] = Field(
        default_factory=list,
        description="words and phrases, whole and in any case, that no prompt may hold: one of the source is refused, one that a language"
        " model writes is asked for again",
    )
    max_characters: int | None = Field(default=None, ge=1, description="longest prompt; a longer one is treated as by `blocklist`")
    image_folders: list[str] = Field(
        default_factory=list,
        description="further folders that input images may lie in, also of an object store, s3://bucket/pictures;"
        " always allowed is the prompt file's own",
    )
    draws_per_prompt: int = Field(default=1, ge=1, description="images to make of each prompt, each with its own seed")
    expand: ExpandConfig | None = Field(default=None, description="prompts rewritten by a language model: see below")
    until_accepted: int | None = Field(
        default=None, ge=1, description="draw further seeds of a prompt until so many of its images are accepted; see docs/curation.md"
    )
    max_draws_per_prompt: int | None = Field(default=None, ge=1, description="for until_accepted: draws after which a prompt is given up")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(source is not None for source in (self.file, self.texts, self.template)) != 1:
            raise ValueError("give exactly one of 'file', 'texts' and 'template'")
        if self.template == []:
            raise ValueError("'template' is an empty list; write at least one text")
        taken = [name for name in self.variables if name in PROMPT_COLUMNS or not name.isidentifier()]
        if taken:
            raise ValueError(f"variables: {taken[0]!r} cannot be the name of a variable; use another of letters, digits and _")
        empty = [name for name, values in self.variables.items() if not values]
        if empty:
            raise ValueError(f"variables: {empty[0]!r} has no values; write at least one")
        if self.per_label is not None and (self.label is None or self.sample is not None):
            raise ValueError("'per_label' needs 'label', and excludes 'sample'")
        if (self.until_accepted is None) != (self.max_draws_per_prompt is None):
            raise ValueError("'until_accepted' and 'max_draws_per_prompt' belong together; give both or neither")
        if self.until_accepted is not None and not self.until_accepted <= (self.max_draws_per_prompt or 0) >= self.draws_per_prompt:
            raise ValueError("'max_draws_per_prompt' must be at least 'until_accepted' and 'draws_per_prompt'")
        return self


class LoraConfig(Section):
    """Low-rank changes of a model's weights (Hu et al. 2021, arXiv:2106.09685). Several add up, in whatever order they stand."""

    id: str = Field(description="a safetensors file, a folder that holds one, or a hub name")
    file: str = Field(default="pytorch_lora_weights.safetensors", description="name of the file in the folder or on the hub")
    revision: str | None = Field(default=None, description="commit of a hub name; without it the newest is looked up once and recorded")
    scale: float = Field(default=1.0, ge=-10, le=10, description="factor of the change; 0 draws what the model draws without it")


class EmbeddingConfig(Section):
    """Learned vectors that a word of the prompts stands for: textual inversion (Gal et al. 2022, arXiv:2208.01618)."""

    id: str = Field(description="a safetensors file, a folder that holds one, or a hub name")
    file: str = Field(default="learned_embeds.safetensors", description="name of the file in the folder or on the hub")
    revision: str | None = Field(default=None, description="commit of a hub name; without it the newest is looked up once and recorded")
    token: str | None = Field(default=None, description="the word in the prompts; the name that the file gives, or its own, if not given")


class VaeConfig(Section):
    """Another autoencoder in the place of the model's own, of the same kind and with latents of the same shape."""

    id: str = Field(description="its folder, or a hub name such as stabilityai/sd-vae-ft-mse")
    revision: str | None = Field(default=None, description="commit of a hub name; without it the newest is looked up once and recorded")


class ControlnetConfig(Section):
    """What lets an image of edges, depth and the like lead the drawing: a ControlNet, or a T2I-Adapter."""

    id: str = Field(description="'demo' (edges, for the bundled model), a folder, or a hub name, of one that was trained for the model")
    revision: str | None = Field(default=None, description="commit of a hub name; without it the newest is looked up once and recorded")


class IpAdapterConfig(Section):
    """What lets an image be a prompt, for Stable Diffusion 1 and XL (Ye et al. 2023, arXiv:2308.06721); none of faces (FaceID)."""

    id: str = Field(description="a folder, or a hub name such as h94/IP-Adapter")
    file: str = Field(
        default="models/ip-adapter_sd15.safetensors", description="its weights there, such as sdxl_models/ip-adapter_sdxl.safetensors"
    )
    image_encoder: str = Field(default="models/image_encoder", description="folder of the CLIP that reads the image, there too")
    revision: str | None = Field(default=None, description="commit of a hub name; without it the newest is looked up once and recorded")


class SecondStageConfig(Section):
    """A second model that goes on from the first one's image: a refiner, or an upscaler with which the images get larger.

    It is given the image as pixels, the prompt, and noise of its own.
    """

    id: str = Field(description="a folder, or a hub name such as stabilityai/stable-diffusion-xl-refiner-1.0")
    revision: str | None = Field(default=None, description="commit of a hub name; without it the newest is looked up once and recorded")
    variant: str | None = Field(default=None, description="weight files with this infix, for example fp16")
    mode: Literal["image-to-image", "super-resolution"] = Field(default="image-to-image", description="what it does with the image")
    strength: float = Field(default=0.3, gt=0, le=1, description="for image-to-image: share of the noise schedule that is run again")
    steps: int | None = Field(default=None, ge=1, le=1000, description="denoising steps; as many as the first model's if not given")
    guidance_scale: float | None = Field(default=None, ge=0, le=100, description="as the first model's if not given")

    @property
    def text(self) -> str:
        """Settings in one word, as an ending of the model's revision."""
        strength = f"={self.strength:g}" if self.mode == "image-to-image" else ""
        given = {"steps": self.steps, "guidance": self.guidance_scale}
        return ",".join([f"{self.mode}{strength}", *(f"{name}={value:g}" for name, value in given.items() if value is not None)])


class StepCacheConfig(Section):
    """Work of one denoising step used again in later ones: faster, and other images. Off unless it is asked for.

    - `first_block`: a step whose first block hardly differs from the last step's takes the other blocks' work from there
      (ParaAttention). An image is then made alone, since a batch would share the decision. For transformers such as FLUX, Qwen-Image.
    - `taylor`: blocks run in one of `interval` steps, and are extrapolated between (TaylorSeer, Liu et al. 2025). For the same models.
    - `pyramid_attention`: attention runs in one of `interval` steps from timestep 800 to 100 (Zhao et al. 2024). For U-Nets, SD3, PixArt.
    """

    kind: Literal["first_block", "taylor", "pyramid_attention"] = Field(description="first_block, taylor or pyramid_attention")
    threshold: float = Field(default=0.08, gt=0, lt=1, description="for first_block: the relative change from which a step is computed")
    interval: int = Field(default=2, ge=2, le=20, description="for taylor and pyramid_attention: one of so many steps is computed")

    @property
    def text(self) -> str:
        """Kind and the setting that it has."""
        return f"{self.kind}={self.threshold:g}" if self.kind == "first_block" else f"{self.kind}={self.interval}"


class ComputeConfig(Section):
    """How the model's arithmetic is done. What a switch gives: docs/speed.md. One that would have no effect is refused.

    Each but `offload` changes at least the last bits of an image, so they are part of the job's identity. `quantize`, `vae_tiling` and
    `step_cache` change what is seen: they are added to the column `model_revision`, and make other sample ids.
    """

    channels_last: bool = Field(default=False, description="memory layout that convolutions are fast in; for U-Nets and autoencoders")
    compile: Literal["regional", "whole"] | None = Field(
        default=None,
        description="torch.compile: of the blocks that repeat, which takes a minute, or of the whole network, which takes several;"
        " kept on disk for later runs",
    )
    attention: AttentionBackend | None = Field(
        default=None, description="kernel of the attention, where diffusers lets it be chosen (transformers); torch chooses if not given"
    )
    vae_slicing: bool = Field(default=False, description="decode images one by one: less memory")
    vae_tiling: bool = Field(default=False, description="decode large images in overlapping tiles: much less memory")
    step_cache: Annotated[StepCacheConfig, _shorthand("kind")] | None = Field(
        default=None, description="first_block, taylor or pyramid_attention: see below"
    )
    quantize: Literal["int8_weights", "int8", "float8_weights"] | None = Field(
        default=None, description="linear layers of the network by torchao; needs pip install 'promptmill[quantize]'"
    )
    offload: Literal["model", "sequential"] | None = Field(
        default=None, description="keep parts (model) or layers (sequential) of the model in main memory until they are needed; for GPUs"
    )

    @property
    def seen(self) -> str:
        """What changes the images more than in their last bits, as an ending of the model's revision."""
        tiling = "vae_tiling" if self.vae_tiling else None
        return "".join(f"+{part}" for part in (self.quantize, tiling, self.step_cache and self.step_cache.text) if part)


class ModelConfig(Section):
    """The generator."""

    id: str = Field(
        description="'demo' or 'demo-upscaler' (bundled), a local diffusers folder, or a hub name such as stabilityai/sdxl-turbo"
    )
    endpoint: EndpointConfig | None = Field(default=None, description="a server that draws instead of this machine: see below")
    revision: str | None = Field(default=None, description="commit of a hub model; without it the newest is looked up once and recorded")
    variant: str | None = Field(default=None, description="weight files with this infix, for example fp16")
    controlnet: Annotated[ControlnetConfig, _shorthand("id")] | None = Field(
        default=None, description="for sampling.mode control: see below"
    )
    ip_adapter: Annotated[IpAdapterConfig, _shorthand("id")] | None = Field(
        default=None, description="for sampling.mode image-prompt, or beside another mode: see below"
    )
    loras: list[Annotated[LoraConfig, _shorthand("id")]] = Field(default_factory=list, description="LoRA weights: see below")
    embeddings: list[Annotated[EmbeddingConfig, _shorthand("id")]] = Field(default_factory=list, description="textual inversion: see below")
    vae: Annotated[VaeConfig, _shorthand("id")] | None = Field(default=None, description="another autoencoder: see below")
    second_stage: Annotated[SecondStageConfig, _shorthand("id")] | None = Field(
        default=None, description="a refiner or an upscaler that goes on from the image: see below"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(default="float32", description="compute type of all parts of the pipeline")
    cpu_threads: int = Field(
        default=1, ge=1, description="threads of one worker on a CPU; part of the job's identity, since it changes the last bits"
    )
    compute: ComputeConfig = Field(default_factory=ComputeConfig, description="how its arithmetic is done: see below")

    @model_validator(mode="after")
    def _computes(self) -> Self:
        if self.endpoint and self.compute != ComputeConfig():
            raise ValueError("compute: an endpoint's server computes as it likes; take 'compute' out")
        return self

    @model_validator(mode="after")
    def _weights_are_ours(self) -> Self:
        given = [name for name in ("controlnet", "ip_adapter", "loras", "embeddings", "vae", "second_stage") if getattr(self, name)]
        if self.endpoint and given:
            raise ValueError(f"{given[0]}: the weights of an endpoint are its own; take it out")
        return self


class MarginsConfig(Section):
    """What outpainting adds around the init image, in pixels of the finished image."""

    left: int = Field(default=0, ge=0, description="pixels")
    top: int = Field(default=0, ge=0, description="pixels")
    right: int = Field(default=0, ge=0, description="pixels")
    bottom: int = Field(default=0, ge=0, description="pixels")


class CannyConfig(Section):
    """Edges by Canny's detector (1986), made of the control images."""

    low: int = Field(default=100, ge=0, le=255, description="gradient from which an edge goes on")
    high: int = Field(default=200, ge=0, le=255, description="gradient from which an edge begins")


class SamplingConfig(Section):
    """How an image is drawn from noise. A prompt file may have columns steps, guidance_scale, true_cfg_scale, guidance_rescale,
    strength, control_scale, reference_scale, width and height, which hold for their row."""

    mode: Mode = Field(
        default="text-to-image",
        description="what conditions the images besides text; input images come from the prompt file's columns init_image,"
        " mask_image (white is painted anew), control_image and reference_image",
    )
    scheduler: str = Field(
        default="default",
        description="'default' (the model's own) or a name from the table in docs/samplers.md, such as ddim, euler, dpm++_2m",
    )
    steps: int = Field(default=20, ge=1, le=1000, description="denoising steps")
    guidance_scale: float = Field(
        default=5.0, ge=0, le=100, description="classifier-free guidance (Ho & Salimans 2022); 1 or less turns it off"
    )
    true_cfg_scale: float = Field(
        default=1.0,
        ge=1,
        le=100,
        description="for models that take guidance_scale as an input of their network (FLUX.1-dev): above 1 the network is asked a second"
        " time, with the negative prompt, and this is the scale of that classifier-free guidance; 1 turns it off",
    )
    guidance_rescale: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share by which the guided prediction is scaled back to the contrast of the unguided one (Lin et al. 2024,"
        " arXiv 2305.08891, section 3.4); for Stable Diffusion 1, 2 and XL and HunyuanDiT",
    )
    guidance_interval: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=2, max_length=2)] | None = Field(
        default=None,
        description="[0.2, 0.8]: guidance from the first to before the second share of the steps only (Kynkäänniemi et al. 2024,"
        " arXiv 2404.07724), which keeps images more varied and saves the second pass in the others; see docs/samplers.md",
    )
    width: int | None = Field(default=None, ge=1, le=16384, description="pixels; the model's own size if not given")
    height: int | None = Field(default=None, ge=1, le=16384, description="pixels; the model's own size if not given")
    strength: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="share of the noise schedule that is run over the init image (SDEdit, Meng et al. 2022);"
        " 0.6 for image-to-image and 1 for inpainting and outpainting if not given",
    )
    margins: MarginsConfig | None = Field(default=None, description="for outpainting: what is added on each side")
    canny: CannyConfig | None = Field(
        default=None, description="for control: make edges of the control images; without it they are used as they are"
    )
    control_scale: float = Field(
        default=1.0, ge=0, le=10, description="for control and image-prompt: weight of the ControlNet, T2I-Adapter or IP-Adapter"
    )
    reference_scale: float = Field(
        default=1.0, ge=0, le=10, description="for model.ip_adapter beside another mode than image-prompt: weight of the reference image"
    )
    negative_prompt: str = Field(default="", description="used where a prompt brings none of its own")
    prompt_weighting: bool = Field(
        default=False,
        description="read (word:1.3), (word) and [word] in prompts as weights, and prompts of any length, not just the 77 tokens that"
        " CLIP takes at once; for Stable Diffusion 1, 2 and XL; see docs/prompts.md",
    )
    batch_size: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = Field(
        default=8,
        description="images per call of the model; short batches are padded, so that every image sees the same shape."
        " auto: as many as fit the GPU's memory, 8 on a CPU; chosen when a run is first started, and kept in its job.yaml",
    )
    sweep: dict[str, list[str | int | float]] = Field(
        default_factory=dict,
        description="lists of values for scheduler or any field that a prompt may set; every prompt is drawn with each setting",
    )
    sweep_mode: Literal["product", "zip"] = Field(default="product", description="all combinations of the lists, or first with first")
    max_settings: int = Field(default=1000, ge=1, description="a sweep that makes more settings of every prompt is refused")

    @model_validator(mode="after")
    def _sweepable(self) -> Self:
        known = (*SAMPLING_COLUMNS, "scheduler")
        for key, values in self.sweep.items():
            if key not in known:
                raise ValueError(f"sweep: {key!r} cannot be swept; these can: {', '.join(known)}")
            if not values:
                raise ValueError(f"sweep: {key!r} has no values; write at least one, or take it out")
        if self.sweep_mode == "zip" and len({len(values) for values in self.sweep.values()}) > 1:
            raise ValueError("sweep: lists of different lengths cannot be zipped; make them equally long, or use product")
        count = math.prod(map(len, self.sweep.values())) if self.sweep_mode == "product" else 0
        if count > self.max_settings:
            raise ValueError(
                f"sweep: the combinations make {count:,} settings of every prompt, more than max_settings ({self.max_settings:,});"
                " raise it if you mean that, or take values out"
            )
        if len(set(self._settings())) < len(self._settings()):
            raise ValueError("sweep: a setting stands twice; take the repeated values out")
        self.settings()
        return self

    def _settings(self) -> list[tuple[tuple[str, str | int | float], ...]]:
        combine = product if self.sweep_mode == "product" else zip
        return [tuple(zip(self.sweep, values, strict=True)) for values in combine(*self.sweep.values())] if self.sweep else [()]

    def settings(self) -> list["SamplingConfig"]:
        """The sampling of each setting of the sweep, in order; just this one without a sweep."""
        fixed = self.model_dump(exclude={"sweep", "sweep_mode"})
        return [SamplingConfig.model_validate(fixed | dict(setting)) for setting in self._settings()] if self.sweep else [self]

    @field_validator("guidance_interval")
    @classmethod
    def _in_order(cls, interval: list[float] | None) -> list[float] | None:
        if interval and interval[0] >= interval[1]:
            raise ValueError(f"{interval} holds no step; write the smaller share first, such as [0.2, 0.8]")
        return interval

    @model_validator(mode="after")
    def _of_the_mode(self) -> Self:
        given = {"strength": self.strength, "margins": self.margins, "canny": self.canny}
        modes = {"strength": tuple(STRENGTH), "margins": ("outpainting",), "canny": ("control",)}
        for name, value in given.items():
            if value is not None and self.mode not in modes[name]:
                raise ValueError(f"{name} is for {' and '.join(modes[name])}, not for {self.mode}; take it out, or set sampling.mode")
        if self.mode == "outpainting" and (self.margins is None or not any(self.margins.model_dump().values())):
            raise ValueError("outpainting needs margins, for example: margins: {left: 64, right: 64}")
        return self


class ScorerConfig(Section):
    """One scorer; its key in ``scorers`` names its columns (``clip`` -> ``clip_score``)."""

    type: str = Field(
        default="clip",
        description="clip, choice, concept, aesthetic, nsfw, nudenet, pickscore, hpsv2, vqascore, sharpness, entropy, clipped"
        " (see docs/curation.md), or package.module:Class",
    )
    model: str | None = Field(
        default=None,
        description="for clip, choice, concept, aesthetic and nsfw: 'demo', NAME/PRETRAINED of open_clip (ViT-B-32/laion2b_s34b_b79k), or"
        " a local folder; for pickscore and vqascore: a transformers folder or a hub name; for hpsv2: the file of its weights",
    )
    choices: dict[str, list[str]] = Field(
        default_factory=dict,
        description="for choice: words that could stand for each other in a prompt, such as {colour: [red, blue]};"
        " for concept: texts that tell what is looked for, and what else it could be, {concept: [...], other: [...]}",
    )
    head: str | None = Field(
        default=None, description="for aesthetic, or nsfw: safetensors file of linear layers over the model's image features"
    )


class RuleConfig(Section):
    """One rule. It looks at the images that passed the rules before it, and is of exactly one kind:

    - `min`, `max`: reject images whose `score` lies outside; a score that is NaN is rejected too;
    - `where`: reject images for which an SQL condition does not hold;
    - `keep`, `keep_share`: of each group (`within`) keep so many, or such a share, the best by `score`;
    - `phash_distance`, `embedding_cosine`: of images that look alike keep the best by `score`, without one the first of the plan.

    All but the first look at a whole run, so they are for `promptmill filter`; a configuration has the first kind only.
    """

    score: str | None = Field(default=None, description="key of a scorer")
    min: float | None = Field(default=None, description="lowest score that is kept")
    max: float | None = Field(default=None, description="highest score that is kept")
    where: str | None = Field(default=None, description="SQL (DuckDB) over the columns of metadata, such as tags['shape'] = 'star'")
    keep: int | None = Field(default=None, ge=1, description="images to keep of each group; without `score` an even sample of them")
    keep_share: float | None = Field(default=None, gt=0, le=1, description="share of each group to keep; 0.9 rejects its worst tenth")
    phash_distance: int | None = Field(
        default=None, ge=0, le=16, description="perceptual hashes that differ in so many of their 64 bits, or fewer, look alike"
    )
    embedding_cosine: float | None = Field(
        default=None, gt=0, le=1, description="CLIP features of 'promptmill embed' whose cosine is so high, or higher, look alike"
    )
    within: str = Field(default="run", description="what makes a group: run, prompt, a column such as label, or a tag: tags.shape")
    reason: str | None = Field(
        default=None, pattern="^[a-z0-9_]+$", description="what the column reason says; made from the rule if not given"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = [kind for kind in ("where", "keep", "keep_share", "phash_distance", "embedding_cosine") if getattr(self, kind) is not None]
        bounded = self.min is not None or self.max is not None
        if len(kinds) + bounded != 1:
            raise ValueError("give one of 'min' and/or 'max', 'where', 'keep', 'keep_share', 'phash_distance', 'embedding_cosine'")
        if self.score is None and (bounded or kinds == ["keep_share"]):
            raise ValueError(f"{'min and max' if bounded else 'keep_share'} need a 'score'")
        if self.score is not None and kinds == ["where"]:
            raise ValueError("where: name the score in the condition, such as clip_score > 0.3, and take 'score' out")
        if self.within != "run" and (bounded or kinds == ["where"]):
            raise ValueError("within: is for keep, keep_share, phash_distance and embedding_cosine")
        return self

    @property
    def is_local(self) -> bool:
        """Whether one image is enough to tell."""
        return self.min is not None or self.max is not None

    @property
    def is_about_likeness(self) -> bool:
        """Whether it compares images with each other."""
        return self.phash_distance is not None or self.embedding_cosine is not None


class FilterConfig(Section):
    """Which images are accepted. Every score is stored whatever the rules say."""

    rules: list[RuleConfig] = Field(default_factory=list, description="checked in order; the first that fails is the reason")
    reject_blank: bool = Field(default=True, description="reject images of one flat colour, as NaNs and safety checkers leave them")
    best_of_prompt: int | None = Field(
        default=None, ge=1, description="of the images of one prompt that pass the rules, accept this many, by rank_by"
    )
    rank_by: str | None = Field(default=None, description="scorer that ranks the images of a prompt; the first one if not given")

    def check_scores(self, known: Iterable[str]) -> None:
        """Raise ValueError if a rule needs a score that there is not."""
        known = list(known)
        for name in [rule.score for rule in self.rules] + [self.rank_by]:
            if name is not None and name not in known:
                raise ValueError(f"filter: there is no scorer {name!r}; scorers are: {', '.join(known) or 'none'}")
        if self.best_of_prompt and not known:
            raise ValueError("filter.best_of_prompt: ranking needs a scorer, and there is none; add one to 'scorers'")


class OutputConfig(Section):
    """Where and how the dataset is written."""

    dir: str | None = Field(default=None, description="run folder; runs/NAME of the configuration if not given")
    image_format: Literal["webp", "png", "jpeg"] = Field(default="webp", description="webp and png are lossless")
    jpeg_quality: int = Field(default=95, ge=1, le=100, description="for jpeg only; chroma is not subsampled")
    shard_size: int = Field(
        default=64,
        ge=1,
        le=100_000,
        description="draws per shard at most, the unit of retry and commit; prompts are kept whole where they fit,"
        " and shards end where their batches are full",
    )


class ExecutorConfig(Section):
    """Who does the work. Changes nothing in the dataset."""

    kind: Literal["ray", "local"] = Field(default="ray", description="'ray' actors, or 'local': this process")
    address: str | None = Field(default=None, description="Ray cluster to join; without it one is started on this machine")
    actors: int | None = Field(
        default=None, ge=1, description="workers; one per GPU, or per cpu_threads CPU cores, if not given, and more as nodes join"
    )
    gpus_per_actor: float | None = Field(default=None, ge=0, description="1 where the cluster has GPUs, else 0, if not given")
    memory_gb: float | None = Field(
        default=None, gt=0, description="main memory that each worker is given on its node, in 10^9 bytes; without it, it is not counted"
    )
    max_attempts: int = Field(default=3, ge=1, description="tries at a shard whose worker dies, before it is left for a later run")
    batch_seconds: float | None = Field(
        default=1800, gt=0, description="a Ray worker that takes longer for one batch is killed, and the shard tried elsewhere; null: never"
    )
    grace_seconds: float | None = Field(
        default=None, gt=0, description="seconds that a stopped run has to finish its current batches; without it, as many as they take"
    )


Scorers = Annotated[
    dict[str, Annotated[ScorerConfig, _shorthand("model")]],
    BeforeValidator(lambda value: {"clip": value} if isinstance(value, str) else value),
]


class JobConfig(Section):
    """A whole job. ``promptmill run`` is a function of it and of the prompts."""

    prompts: Annotated[
        PromptsConfig, BeforeValidator(lambda v: {"file": v} if isinstance(v, str) else {"texts": v} if isinstance(v, list) else v)
    ]
    model: Annotated[ModelConfig, _shorthand("id")]
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    seed: int = Field(default=0, ge=0, lt=2**63, description="the job's seed")
    scorers: Scorers = Field(default_factory=dict)
    filter: FilterConfig = Field(default_factory=FilterConfig)
    output: OutputConfig = Field(default_factory=OutputConfig)
    executor: ExecutorConfig = Field(default_factory=ExecutorConfig)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.prompts.until_accepted is not None and (self.sampling.sweep or self.filter.best_of_prompt):
            raise ValueError(
                "prompts.until_accepted: cannot be had together with sampling.sweep or filter.best_of_prompt; take one of them out"
            )
        if (self.sampling.mode == "control") != (self.model.controlnet is not None):
            raise ValueError("sampling.mode: control and model.controlnet belong together; give both or neither")
        if self.sampling.mode == "image-prompt" and self.model.ip_adapter is None:
            raise ValueError("sampling.mode: image-prompt needs model.ip_adapter; give one")
        if self.sampling.mode == "text-to-image" and self.model.ip_adapter:
            raise ValueError("sampling.mode: text-to-image with model.ip_adapter is image-prompt; set that, or take the adapter out")
        if self.sampling.guidance_interval and self.model.compute.step_cache:
            raise ValueError("sampling.guidance_interval cannot be had together with model.compute.step_cache; take one of them out")
        if self.model.second_stage and self.sampling.mode != "text-to-image":
            raise ValueError(f"model.second_stage goes with text-to-image, not with {self.sampling.mode}; take it out")
        for name in self.scorers:
            if not name.isidentifier() or name != name.lower():
                raise ValueError(f"scorers: {name!r} becomes part of a column name; use lower-case letters, digits and _")
        self.filter.check_scores(self.scorers)
        if not all(rule.is_local for rule in self.filter.rules):
            raise ValueError("filter.rules: a job has rules with min and max only; for others run 'promptmill filter' when it is done")
        if self.filter.best_of_prompt and self.images_per_prompt > self.output.shard_size:
            raise ValueError(
                f"filter.best_of_prompt: the {self.images_per_prompt} draws of a prompt must fit into one shard;"
                f" raise output.shard_size from {self.output.shard_size} to at least that"
            )
        return self

    @property
    def batch_size(self) -> int:
        """Images per call of the model. ``auto`` is a number once a run is started."""
        assert self.sampling.batch_size != "auto", "the batch size was not chosen yet"
        return self.sampling.batch_size

    @property
    def images_per_prompt(self) -> int:
        """Draws of one prompt over all settings of the sweep."""
        return self.prompts.draws_per_prompt * len(self.sampling.settings())
