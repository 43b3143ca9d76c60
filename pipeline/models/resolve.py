"""From a model's name to a checked folder and the facts that a plan needs. No torch, no diffusers."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.models import samplers
from pipeline.models.addons import Addons, resolve_addons
from pipeline.models.folder import INDEX, ModelFolder, component_names, inspect_folder, needs_weights, weight_files
from pipeline.models.guidance import Guidance, check_guidance, guidance_of
from pipeline.models.modes import (
    CONTROLNETS,
    ENDPOINT_MODES,
    INPUT_SCALE,
    LATENT_UPSCALER,
    T2I_ADAPTERS,
    TAKES_REFERENCES,
    UNSCALED,
    WEIGHS_PROMPTS,
    pipelines,
)
from pipeline.weights import HUB_ID, PINNED, check_pinned, fingerprint, hub_snapshot, read_json
from schemas.config import ModelConfig, SamplingConfig, in_folder
from schemas.errors import ModelError
from schemas.modes import STRENGTH, Mode
from schemas.records import Prompt

WEIGHTS = Path(__file__).parent / "demo" / "weights"
BUNDLED = {"demo": "generator", "demo-upscaler": "upscaler"}
"""Models that come with promptmill, and their folders in WEIGHTS; model.controlnet may be 'demo' too."""

ENDPOINT = "endpoint"  # in the place of a pipeline class
TOLD = {"openai": (), "diffusion": ("steps", "guidance_scale", "true_cfg_scale", "negative_prompt", "strength")}
"""Settings of sampling that an endpoint is told besides the size, by its dialect."""
NOT_BY_ALL = (*TOLD["diffusion"], "guidance_rescale", "guidance_interval")
_FIXED_SIZE = frozenset({"DDPMPipeline", "DDIMPipeline", "DiTPipeline"})  # they take neither width nor height
_CONFIG_PATTERNS = (INDEX, "*/*.json", "*/*.txt", "*/*.model")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """All that is needed to plan with a model and to load it; plain values, recorded in ``job.yaml``.

    ``name`` is that of a bundled model, the hub id, or the folder's own name. ``revision`` is the hub commit, or a sha256 over
    the files that get loaded. ``width`` and ``height`` are its default size in pixels; sizes are multiples of
    ``size_multiple`` and at most ``max_size``. ``prediction_type`` is epsilon, v_prediction, sample or flow;
    ``zero_snr`` tells that the noise schedule ends in pure noise; ``guidance`` what is done with a guidance_scale.
    ``pipeline_class`` is what does the job's ``mode``; ``input_scale`` is how much larger its images are than their init
    image; ``controlnet`` is the folder of the ControlNet; ``addons`` are LoRA weights and the like. With a
    ``second_stage`` the sizes are those of its images. ``told`` are the settings that an endpoint has fields for.
    """

    name: str
    revision: str
    folder: str
    pipeline_class: str
    width: int
    height: int
    size_multiple: int
    max_size: int | None
    scheduler: str
    prediction_type: str
    guidance: Guidance = "second pass"
    mode: Mode = "text-to-image"
    input_scale: int = 1
    zero_snr: bool = False
    controlnet: str | None = None
    addons: Addons = field(default_factory=Addons)
    second_stage: "ModelCard | None" = None
    told: tuple[str, ...] = ()


def resolve_model(config: ModelConfig, *, base_dir: Path, mode: Mode = "text-to-image") -> ModelCard:
    """Find a model, check it through, and choose the pipeline for the mode.

    With ``config.endpoint`` nothing is looked up. Else ``config.id`` is one of BUNDLED, a folder (absolute or relative
    to ``base_dir``), or a hub id. Raises ModelError.
    """
    where = f"model {config.id}"
    if config.endpoint:
        if mode not in ENDPOINT_MODES:
            raise ModelError(f"sampling.mode: an endpoint does not do {mode}; it can do: {', '.join(ENDPOINT_MODES)}")
        return replace(_endpoint_card(config), mode=mode)
    bundled = config.id in BUNDLED
    local = WEIGHTS / BUNDLED[config.id] if bundled else in_folder(base_dir, config.id)
    if bundled or local.is_dir():
        if not local.is_dir():
            raise ModelError(f"{where}: the bundled weights are missing from this installation; install promptmill again")
        found = inspect_folder(local, variant=config.variant, where=where)
        if bundled:
            check_pinned(local, found.files, pins=WEIGHTS / PINNED, where=where)
        name = config.id if bundled else local.resolve().name
        card = _card(found, name=name, revision=fingerprint(local, found.files), folder=local.resolve(), where=where)
    elif HUB_ID.fullmatch(config.id):
        folder = from_hub(config, where)
        found = inspect_folder(folder, variant=config.variant, where=where)
        card = _card(found, name=config.id, revision=folder.name, folder=folder, where=where)
    else:
        raise ModelError(
            f"{where}: there is no such folder (looked for {local}); give 'demo', a diffusers folder, or a hub id such as org/name"
        )
    card = _with_controlnet(_for_mode(card, mode, found.configs.get("unet")), config, base_dir=base_dir)
    if config.ip_adapter and card.pipeline_class not in TAKES_REFERENCES:
        raise ModelError(f"model.ip_adapter: {card.name} ({card.pipeline_class}) takes none for sampling.mode {mode}; take it out")
    addons = resolve_addons(config, base_dir=base_dir, vae=found.configs.get("vae"), model=card.name)
    card = replace(card, addons=addons, revision=f"{card.revision}+{addons.digest}") if addons.digest else card
    return _with_second_stage(card, config, base_dir=base_dir) if config.second_stage else card


def _for_mode(card: ModelCard, mode: Mode, unet: dict[str, Any] | None) -> ModelCard:
    """The card with the pipeline that does the mode."""
    found = pipelines(card.pipeline_class, unet_channels=unet.get("in_channels") if unet else None)
    if mode not in found:
        raise ModelError(f"sampling.mode: {card.name} ({card.pipeline_class}) cannot do {mode}; it can do: {', '.join(found)}")
    scale = INPUT_SCALE.get(found[mode], 1)
    # the U-Net of an upscaler halves its latents three times; those of the x4 one are as large as the init image
    halved = 8 * (card.size_multiple if found[mode] == LATENT_UPSCALER else scale)
    multiple = math.lcm(card.size_multiple, halved) if scale > 1 else card.size_multiple
    return replace(card, pipeline_class=found[mode], mode=mode, input_scale=scale, size_multiple=multiple)


def _with_second_stage(card: ModelCard, config: ModelConfig, *, base_dir: Path) -> ModelCard:
    """The card with the second model's, of whose images the size is; its files and settings become part of the revision."""
    stage = config.second_stage
    assert stage is not None
    second = resolve_model(second_stage_config(config), base_dir=base_dir, mode=stage.mode)
    own = SamplingConfig(mode=stage.mode, steps=stage.steps or 1000, strength=stage.strength if stage.mode == "image-to-image" else None)
    check_sampling(second, own, "model.second_stage: ")
    limits = [limit for limit in (card.max_size and card.max_size * second.input_scale, second.max_size) if limit]
    return replace(
        card,
        second_stage=second,
        width=card.width * second.input_scale,
        height=card.height * second.input_scale,
        size_multiple=math.lcm(card.size_multiple * second.input_scale, second.size_multiple),
        max_size=min(limits, default=None),
        revision=f"{card.revision}+{second.revision}+{stage.text}",
    )


def second_stage_config(config: ModelConfig) -> ModelConfig:
    """The configuration of the second model, computed with as the first is."""
    stage = config.second_stage
    assert stage is not None
    return ModelConfig(
        id=stage.id,
        revision=stage.revision,
        variant=stage.variant,
        dtype=config.dtype,
        cpu_threads=config.cpu_threads,
        compute=config.compute,
    )


def _with_controlnet(card: ModelCard, config: ModelConfig, *, base_dir: Path) -> ModelCard:
    """The card with its ControlNet, whose files become part of the revision."""
    if config.controlnet is None:
        return card
    name = config.controlnet.id
    where, bundled = f"model.controlnet {name}", name == "demo"
    folder = WEIGHTS / "controlnet" if bundled else in_folder(base_dir, name)
    if not folder.is_dir():
        if not HUB_ID.fullmatch(name):
            raise ModelError(
                f"{where}: there is no such folder (looked for {folder}); give a ControlNet's folder or a hub id such as org/name"
            )
        folder = controlnet_from_hub(name, revision=config.controlnet.revision)
    settings, wanted = read_json(folder / "config.json", where=where), CONTROLNETS[card.pipeline_class]
    found = settings.get("_class_name")
    if found == "T2IAdapter" and card.pipeline_class in T2I_ADAPTERS:
        # its features are halved as often as the U-Net's, of which the last ones must still be whole
        halvings = 1 if settings.get("adapter_type") == "full_adapter_xl" else len(settings["channels"]) - 1
        multiple = math.lcm(card.size_multiple, settings["downscale_factor"] * 2**halvings)
        card = replace(card, pipeline_class=T2I_ADAPTERS[card.pipeline_class], size_multiple=multiple)
    elif found != wanted:
        raise ModelError(f"{where}: is a {found}, and {card.name} takes a {wanted}; give a ControlNet that was trained for this model")
    if bundled:
        check_pinned(folder, controlnet_files(folder, config), pins=WEIGHTS / PINNED, where=where)
    return replace(card, controlnet=str(folder), revision=f"{card.revision}+{controlnet_revision(folder, config)}")


def controlnet_from_hub(repo: str, *, revision: str | None) -> Path:
    """Folder of a ControlNet of the hub, downloaded if need be. Raises ModelError."""
    allow = ("config.json", "diffusion_pytorch_model*.safetensors*")
    return hub_snapshot(repo, revision=revision, allow=allow, where=f"model.controlnet {repo}")


def controlnet_files(folder: Path, config: ModelConfig) -> list[str]:
    """Files of a ControlNet that get loaded, all checked to be whole. Raises ModelError."""
    where = f"model.controlnet {config.controlnet.id if config.controlnet else folder}"
    return ["config.json", *weight_files(folder, variant=config.variant, where=where)]


def controlnet_revision(folder: Path, config: ModelConfig) -> str:
    """A sha256 over the files of a ControlNet that get loaded. Raises ModelError."""
    return fingerprint(folder, controlnet_files(folder, config))


def image_size(card: ModelCard, sampling: SamplingConfig, prompt: Prompt) -> tuple[int, int]:
    """(width, height) in pixels of a prompt's images. An upscaler's follow from the init image unless they are given."""
    settings = sampling.model_copy(update=dict(prompt.sampling))
    width, height = card.width, card.height
    init = prompt.images.get("init")
    if card.input_scale > 1 and init is not None:
        sides = (init.width * card.input_scale, init.height * card.input_scale)
        width, height = (max(side // card.size_multiple, 1) * card.size_multiple for side in sides)
    return settings.width or width, settings.height or height


def check_sampling(card: ModelCard, sampling: SamplingConfig, where: str = "") -> None:
    """Raise ModelError for a size or a sampler that the model cannot do, starting with ``where``. Loads nothing."""
    for side, value in (("width", sampling.width or card.width), ("height", sampling.height or card.height)):
        if value % card.size_multiple:
            low = max(value // card.size_multiple, 1) * card.size_multiple
            raise ModelError(
                f"{where}sampling.{side}: {card.name} makes multiples of {card.size_multiple} pixels, not {value};"
                f" use {low} or {low + card.size_multiple}"
            )
        if card.max_size and value > card.max_size:
            raise ModelError(
                f"{where}sampling.{side}: {card.name} makes at most {card.max_size} pixels, not {value}; use {card.max_size} or less"
            )
        margins = sampling.margins
        added = 0 if margins is None else margins.left + margins.right if side == "width" else margins.top + margins.bottom
        if added >= value:
            raise ModelError(f"{where}sampling.margins: {added} pixels leave nothing of a {side} of {value}; make them smaller")
    strength = sampling.strength or STRENGTH.get(sampling.mode, 1.0)
    if int(sampling.steps * strength) < 1:
        raise ModelError(f"{where}sampling.strength: {strength:g} of {sampling.steps} steps is not one step; raise one of them")
    if card.pipeline_class == ENDPOINT:
        _check_told(card, sampling, where)
    else:
        check_guidance(card, sampling, where)
    if sampling.reference_scale != 1 and (card.addons.ip_adapter is None or card.mode == "image-prompt"):
        remedy = "use control_scale" if card.mode == "image-prompt" else "take it out"
        raise ModelError(f"{where}sampling.reference_scale: is for model.ip_adapter beside another mode than image-prompt; {remedy}")
    if sampling.prompt_weighting and card.pipeline_class not in WEIGHS_PROMPTS:
        raise ModelError(
            f"{where}sampling.prompt_weighting: {card.name} ({card.pipeline_class}) reads prompts as they are;"
            " take it out, or use a Stable Diffusion 1, 2 or XL"
        )
    _check_sampler(card, sampling.scheduler)


def _check_told(card: ModelCard, sampling: SamplingConfig, where: str) -> None:
    """What is not sent must not be set: rows would tell of images what is not true of them."""
    for name in NOT_BY_ALL:
        if name not in card.told and getattr(sampling, name) != SamplingConfig.model_fields[name].default:
            instead = ", or set model.endpoint.dialect to diffusion if the server takes it" if name in TOLD["diffusion"] else ""
            raise ModelError(f"{where}sampling.{name}: is not sent to the endpoint of {card.name}; take it out{instead}")


def _check_sampler(card: ModelCard, name: str) -> None:
    prediction = "edm" if card.scheduler.startswith("EDM") else card.prediction_type
    if card.pipeline_class == ENDPOINT and name != "default":
        raise ModelError(f"sampling.scheduler: the endpoint of {card.name} chooses its own sampler; use default")
    found = samplers.fitting(prediction, card.pipeline_class, zero_snr=card.zero_snr)
    fitting = ", ".join(found)
    if name == "default":
        if card.scheduler in samplers.SEED_IGNORED:
            raise ModelError(f"sampling.scheduler: {card.name}'s own {card.scheduler} ignores the seed of an image; use one of: {fitting}")
        return
    if name not in samplers.SAMPLERS:
        guess = samplers.nearest(name)
        meant = f"did you mean {guess!r}? " if guess else ""
        raise ModelError(f"sampling.scheduler: unknown sampler {name!r}; {meant}samplers for {card.name}: default, {fitting}")
    if prediction not in samplers.SAMPLERS[name].fits:
        raise ModelError(
            f"sampling.scheduler: {name} cannot step with the {prediction} prediction of {card.name}; use one of: default, {fitting}"
        )
    if card.zero_snr and name in samplers.NO_ZERO_SNR:
        raise ModelError(
            f"sampling.scheduler: {name} cannot start from the pure noise in which the schedule of {card.name} ends;"
            f" use one of: default, {fitting}"
        )
    if name not in found:
        why = f"works out its steps itself, which {name} does not take"
        why = f"does not scale latents as {name} needs it" if card.pipeline_class in UNSCALED else why
        raise ModelError(
            f"sampling.scheduler: {card.name} ({card.pipeline_class}) {why};"
            f" use {'one of: ' if found else ''}{', '.join(['default', *found])}"
        )


def _endpoint_card(config: ModelConfig) -> ModelCard:
    """An endpoint tells no version of its model: the revision is a digest of what it is asked, and images cannot be made again."""
    assert config.endpoint is not None
    asked = {name: getattr(config.endpoint, name) for name in ("url", "dialect", "request")} | {"revision": config.revision}
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
    return ModelCard(
        name=config.id,
        revision=f"endpoint:{digest}",
        folder=config.endpoint.url,
        pipeline_class=ENDPOINT,
        width=1024,
        height=1024,
        size_multiple=1,
        max_size=None,
        scheduler=ENDPOINT,
        prediction_type=ENDPOINT,
        told=TOLD[config.endpoint.dialect],
    )


def from_hub(config: ModelConfig, where: str) -> Path:
    """Folder of a hub model at ``config.revision`` with all files that get loaded, downloaded if need be. Raises ModelError."""
    folder = hub_snapshot(config.id, revision=config.revision, allow=_CONFIG_PATTERNS, where=where)
    if not (folder / INDEX).is_file():
        return folder  # inspect_folder tells what is wrong with it
    parts = [name for name, (_, kind) in component_names(read_json(folder / INDEX, where=where)).items() if needs_weights(kind)]
    if config.variant:
        _fetch(config.id, folder, parts, f".{config.variant}", where)
        parts = [name for name in parts if not any((folder / name).glob(f"*.{config.variant}*.safetensors"))]
    if parts:
        _fetch(config.id, folder, parts, "", where)
    return folder


def _fetch(repo: str, folder: Path, parts: Sequence[str], infix: str, where: str) -> None:
    patterns = [
        f"{part}/*model{end}" for part in parts for end in (f"{infix}.safetensors", f"{infix}-*.safetensors", f"-*{infix}.safetensors")
    ]
    hub_snapshot(repo, revision=folder.name, allow=patterns, where=where)


def _card(found: ModelFolder, *, name: str, revision: str, folder: Path, where: str) -> ModelCard:
    core = found.configs.get("unet") or found.configs.get("transformer") or found.configs.get("prior") or {}
    scheduler = found.configs.get("scheduler")
    if scheduler is None:
        raise ModelError(f"{where}: {found.pipeline_class} has no scheduler, so it samples nothing; give a diffusion model")
    vae = found.configs.get("vae") or found.configs.get("vqvae") or found.configs.get("movq")
    scale = _vae_scale(vae) if vae else 1  # without one the network draws pixels
    patch = _last(core.get("patch_size") or 1)
    width, height = _default_size(core, scale)
    fixed = found.pipeline_class in _FIXED_SIZE
    max_patches = core.get("pos_embed_max_size")
    return ModelCard(
        name=name,
        revision=revision,
        folder=str(folder),
        pipeline_class=found.pipeline_class,
        width=width,
        height=height,
        # 8: what the pipelines of diffusers insist on; 2: transformers with patches of 1 pack 2 x 2 latents (FLUX, Qwen-Image)
        size_multiple=width if fixed else math.lcm(8, scale * (max(patch, 2) if "transformer" in found.configs else 1)),
        max_size=width if fixed else max_patches * patch * scale if isinstance(max_patches, int) else None,
        scheduler=str(scheduler.get("_class_name", "")),
        prediction_type=_prediction(scheduler),
        guidance=guidance_of(found.pipeline_class, read_json(folder / INDEX, where=where), found.configs),
        zero_snr=bool(scheduler.get("rescale_betas_zero_snr")),
    )


def _prediction(scheduler: dict[str, Any]) -> str:
    stated = str(scheduler.get("prediction_type", "epsilon"))
    if str(scheduler.get("_class_name", "")).startswith("Flow") or scheduler.get("use_flow_sigmas") or stated == "flow_prediction":
        return "flow"
    return stated


def _vae_scale(vae: dict[str, Any]) -> int:
    """Pixels per latent along one side: each block but the last of the encoder halves the picture."""
    if vae.get("temperal_downsample"):  # the causal video VAEs (Qwen-Image, Wan); the spelling is theirs
        return int(2 ** len(vae["temperal_downsample"]))
    blocks = vae.get("encoder_block_out_channels") or vae.get("block_out_channels") or [0, 0, 0, 0]
    return int(2 ** (len(blocks) - 1))


def _default_size(core: dict[str, Any], scale: int) -> tuple[int, int]:
    """(width, height) in pixels; ``sample_size`` is in latents. Models without one (FLUX) draw 1024 pixels."""
    size = core.get("sample_size")
    if isinstance(size, int):
        return size * scale, size * scale
    if isinstance(size, list) and len(size) >= 2:
        return int(size[-1]) * scale, int(size[-2]) * scale
    return 1024, 1024


def _last(value: Any) -> int:
    return int(value[-1]) if isinstance(value, list) else int(value)
