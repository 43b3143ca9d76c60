"""Any image pipeline of diffusers as an ``ImageModel``. The only importer of diffusers.

One call of the pipeline per batch. Each image has a CPU generator of its own, new at each call and seeded by
its draw, so that its noise depends on nothing else. Signatures differ between pipelines: they are read once,
and what a pipeline does not take is refused, never dropped in silence.
"""

import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from pipeline.inputs import Conditions, with_kept_pixels
from pipeline.models.base import Generated
from pipeline.models.blend import Blend
from pipeline.models.embeddings import PromptEncoder, TokenCounter, accepted
from pipeline.models.guidance import Guidance, second_pass_scale
from pipeline.models.guidance_interval import guided_in
from pipeline.models.load_addons import reference_embeddings
from pipeline.models.load_pipeline import load_pipeline
from pipeline.models.modes import PASSES
from pipeline.models.part_clock import PartClock
from pipeline.models.resolve import ModelCard
from pipeline.models.samplers import make_scheduler
from pipeline.models.switches import forget_steps, network
from schemas.config import ModelConfig
from schemas.errors import ModelError
from schemas.modes import INPUTS, Mode
from schemas.records import Draw

log = logging.getLogger(__name__)

_CONDITIONS = {"image", "mask_image", "control_image"}
_CONTENT = {"prompt", "class_labels", "batch_size"}  # what to draw: a text, a class, or only how many
_PADS_TO_THE_LONGEST = ("QwenImage", "CogView4", "ZImage")  # texts of a batch; the padding changes the last bits of an image
_OTHER_MEDIA = {"num_frames", "video_length", "audio_length_in_s", "audio_end_in_s"}
AS_ASKED = {"use_resolution_binning": False, "clean_caption": False}  # defaults that change the size or the prompt behind one's back


class DiffusersModel:
    """One loaded pipeline. Not for use by two threads at once."""

    def __init__(self, card: ModelCard, config: ModelConfig, first: "DiffusersModel | None" = None) -> None:
        """Load onto the GPU if there is one. A second stage without a text encoder reads with that of the ``first``.

        Raises ModelError if the folder's parts do not fit together.
        """
        self.name, self.revision = card.name, card.revision
        _make_quiet()
        _pin_arithmetic(config.cpu_threads)
        self._pipe: Any = load_pipeline(card, config, first._pipe.components if first else {})
        self._scheduler = self._pipe.scheduler
        self._cache = config.compute.step_cache
        self._guidance: Guidance = card.guidance
        self._takes = inspect.signature(self._pipe.__call__).parameters
        self._encoder = PromptEncoder(self._pipe)
        self._tokens = TokenCounter(self._pipe)
        self._parts = PartClock(self._pipe)
        if not _CONTENT & set(self._takes) or _makes_more_than_an_image(self._takes, card.mode):
            raise ModelError(
                f"model {card.name}: {card.pipeline_class} does not make images from text{' alone' if not INPUTS[card.mode] else ''};"
                f" use a model for {card.mode}"
            )

    def take_seconds(self) -> Mapping[str, float]:
        """Of reading texts and of decoding, since the last call."""
        return self._parts.take()

    def generate(self, draws: Sequence[Draw], conditions: Sequence[Conditions] = ()) -> Generated:
        """Images of the draws, in order, in one call of the pipeline; or in one each where neighbours would change an image."""
        if len(draws) > 1 and self._needs_to_be_alone:
            return _joined([self.generate([draw], conditions[number : number + 1]) for number, draw in enumerate(draws)])
        if len(set(windows := [self._windows(draw) for draw in draws])) > 1:
            return self._by_length(draws, conditions, windows)
        first = draws[0]
        generators = [torch.Generator("cpu").manual_seed(draw.seed) for draw in draws]
        self._use(self._seeded_scheduler(first.scheduler, generators))
        given = self._condition_arguments(draws, conditions)
        latents = _LastLatents(self._blend(draws, given))
        arguments = (
            self._content_arguments(draws)
            | given
            | AS_ASKED
            | {
                "num_inference_steps": first.steps,
                "width": first.width,
                "height": first.height,
                # a prior draws an embedding of the negative prompt too, each from the generator of its image
                "generator": generators * 2 if hasattr(self._pipe, "prior_pipe") else generators,
                "output_type": "np",
                "callback_on_step_end": latents,
            }
        )
        if self._cache:
            forget_steps(network(self._pipe))
        with torch.inference_mode(), _no_shared_noise(type(self._pipe).__name__), self._guided_steps(draws):
            output = self._pipe(**accepted(self._pipe.__call__, arguments))
        made = self._generated(draws, np.asarray(output[0], dtype=np.float32), latents.finite(len(draws)), _flags(output, len(draws)))
        return replace(made, images_NHWC=with_kept_pixels(made.images_NHWC, conditions))

    def _windows(self, draw: Draw) -> int:
        """How many windows of the text encoder a draw's texts fill; 0 where weights are not read."""
        return self._encoder.windows([draw.prompt, draw.negative_prompt]) if draw.prompt_weighting else 0

    def _by_length(self, draws: Sequence[Draw], conditions: Sequence[Conditions], windows: Sequence[int]) -> Generated:
        """A call for each number of windows, filled up: how long its neighbours' prompts are, and how many, changes no image."""
        made: dict[int, Generated] = {}
        for wanted in set(windows):
            numbers = [number for number, found in enumerate(windows) if found == wanted]
            filled = numbers + numbers[:1] * (len(draws) - len(numbers))
            whole = self.generate([draws[number] for number in filled], [conditions[number] for number in filled] if conditions else ())
            made |= {number: _only(whole, place) for place, number in enumerate(numbers)}
        return _joined([made[number] for number in range(len(draws))])

    def _guided_steps(self, draws: Sequence[Draw]) -> AbstractContextManager[None]:
        """Where guidance is for some of the steps only, what leaves it out in the others."""
        interval = draws[0].guidance_interval
        if interval is None or not self._guided(draws[0]):
            return nullcontext()
        return guided_in(self._pipe, interval, len(draws), PASSES[type(self._pipe).__name__])

    @property
    def _needs_to_be_alone(self) -> bool:
        """Whether texts are padded to the longest of a batch, or steps are left out for all of a batch together."""
        shares_steps = self._cache is not None and self._cache.kind == "first_block"
        return shares_steps or type(self._pipe).__name__.startswith(_PADS_TO_THE_LONGEST)

    def _condition_arguments(self, draws: Sequence[Draw], conditions: Sequence[Conditions]) -> dict[str, Any]:
        """Input images as tensors (N, C, H, W) in 0..1, and what goes with them."""
        found: dict[str, Any] = {}
        if init := [one.init_HWC for one in conditions if one.init_HWC is not None]:
            found["image"] = _image_tensor(init) * 2 - 1 if type(self._pipe).__name__.startswith("IF") else _image_tensor(init)
        if mask := [one.mask_HW for one in conditions if one.mask_HW is not None]:
            found["mask_image"] = torch.from_numpy(np.stack(mask)).float()[:, None]
        if control := [one.control_HWC for one in conditions if one.control_HWC is not None]:
            found["control_image" if "control_image" in self._takes else "image"] = self._as_the_adapter_reads(_image_tensor(control))
            found["controlnet_conditioning_scale"] = found["adapter_conditioning_scale"] = draws[0].control_scale
        if references := [one.reference_HWC for one in conditions if one.reference_HWC is not None]:
            scale = draws[0].control_scale if draws[0].mode == "image-prompt" else draws[0].reference_scale
            self._pipe.set_ip_adapter_scale(scale)
            found["ip_adapter_image_embeds"] = reference_embeddings(self._pipe, references, guided=self._guided(draws[0]))
        if draws[0].strength is not None:
            found["strength"] = draws[0].strength
        return found

    def _as_the_adapter_reads(self, control_NCHW: torch.Tensor) -> torch.Tensor:
        """Some T2I-Adapters, those of edges, read one channel."""
        adapter = getattr(self._pipe, "adapter", None)
        return control_NCHW[:, :1] if adapter is not None and adapter.config.in_channels == 1 else control_NCHW

    def _blend(self, draws: Sequence[Draw], given: Mapping[str, Any]) -> Blend | None:
        """What keeps the unmasked part of an image, where the pipeline has no mask of its own."""
        if "mask_image" not in given or "mask_image" in self._takes:
            return None
        return Blend(self._pipe, given["image"], given["mask_image"], [draw.seed for draw in draws])

    def _use(self, scheduler: Any) -> None:
        """Set it on the pipeline, and on the decoder of a cascade, which is a pipeline of its own."""
        for pipe in (self._pipe, getattr(self._pipe, "decoder_pipe", None)):
            if pipe is not None:
                pipe.scheduler = scheduler

    def _content_arguments(self, draws: Sequence[Draw]) -> dict[str, Any]:
        """What to draw: texts, classes, or nothing in particular."""
        if "prompt" in self._takes:
            return self._text_arguments(draws)
        self._refuse_unread(draws)
        if "class_labels" in self._takes:
            return {"class_labels": [self._class_of(draw.prompt) for draw in draws], "guidance_scale": draws[0].guidance_scale}
        return {"batch_size": len(draws)}

    def _class_of(self, prompt: str) -> int:
        """Number of a class, given as a number or by a name of ``id2label``."""
        labels, count = getattr(self._pipe, "labels", None) or {}, self._pipe.transformer.config.num_embeds_ada_norm
        if prompt.strip().isdecimal():
            if int(prompt) >= count:
                raise ValueError(f"{type(self._pipe).__name__} has classes 0 to {count - 1}, not {int(prompt)}")
            return int(prompt)
        if prompt.strip() not in labels:
            raise ValueError(f"{type(self._pipe).__name__} knows no class {prompt.strip()!r}; give its number, or a name of id2label")
        return labels[prompt.strip()]

    def _text_arguments(self, draws: Sequence[Draw]) -> dict[str, Any]:
        """Prompts and guidance, as texts or as embeddings."""
        self._refuse_unread(draws)
        guided = self._guided(draws[0])
        prompts = [draw.prompt for draw in draws]
        negatives = [draw.negative_prompt or None for draw in draws]
        if self._encoder.supported:
            texts: dict[str, Any] = dict(self._encoder.batch(prompts, negatives if guided else None, num_windows=self._windows(draws[0])))
        else:
            texts = {"prompt": prompts} | ({"negative_prompt": [text or "" for text in negatives]} if guided else {})
        if "true_cfg_scale" in self._takes:
            texts["true_cfg_scale"] = second_pass_scale(self._guidance, draws[0]) if guided else 1.0
        if "true_cfg_scale" not in self._takes or self._guidance == "input":
            never = PASSES.get(type(self._pipe).__name__) == "lists" and not guided  # Z-Image is guided by any scale above 0
            texts["guidance_scale"] = 0.0 if never else draws[0].guidance_scale
        if draws[0].guidance_rescale:
            texts["guidance_rescale"] = draws[0].guidance_rescale
        return texts

    def _guided(self, draw: Draw) -> bool:
        """Whether the network is asked a second time at each step, without the prompt."""
        return second_pass_scale(self._guidance, draw) > 1

    def _refuse_unread(self, draws: Sequence[Draw]) -> None:
        """A negative prompt is read in the second pass alone."""
        unread = "negative_prompt" not in self._takes or (self._guidance == "input" and not self._guided(draws[0]))
        if unread and any(draw.negative_prompt for draw in draws):
            raise ValueError(f"{type(self._pipe).__name__} takes no negative prompt; leave it empty")

    def _seeded_scheduler(self, name: str, generators: list[torch.Generator]) -> Any:
        """A new scheduler, so that nothing is left over from the last batch, whose steps draw from the generators.

        80 of 167 image pipelines of diffusers 0.42 do not hand their generators on to ``step``, some hand them on to all, and DiT's steps
        with both halves of a guided batch.
        """
        config = self._scheduler.config
        scheduler = type(self._scheduler).from_config(config) if name == "default" else make_scheduler(name, config)
        takes = inspect.signature(scheduler.step).parameters
        given: dict[str, Any] = {"eta": 0.0} if "eta" in takes else {}  # what most pipelines hand on
        if "generator" in takes:
            given["generator"] = generators * 2 if PASSES.get(type(self._pipe).__name__) == "with first" else generators
            scheduler.step = functools.partial(scheduler.step, **given)
        else:
            scheduler.step = _without_generator(scheduler.step)
        return scheduler

    def _generated(self, draws: Sequence[Draw], images_NHWC: np.ndarray, finite: np.ndarray, flags: list[bool | None]) -> Generated:
        counts = [self._tokens.count(draw.words) for draw in draws]
        pixels_finite = np.isfinite(images_NHWC).all(axis=(1, 2, 3))
        clean = np.nan_to_num(images_NHWC, nan=0.0, posinf=1.0, neginf=0.0)
        return Generated(
            images_NHWC=(clean * 255).round().clip(0, 255).astype(np.uint8),
            finite=finite & pixels_finite,
            prompt_tokens=[tokens for tokens, _ in counts],
            prompt_truncated=[truncated and not draw.prompt_weighting for draw, (_, truncated) in zip(draws, counts, strict=True)],
            safety_flagged=flags,
        )


def _without_generator(step: Callable[..., Any]) -> Callable[..., Any]:
    """For pipelines that hand one on without looking whether the sampler takes it."""

    @functools.wraps(step)
    def deterministic(*given: Any, generator: object = None, **named: Any) -> Any:
        return step(*given, **named)

    return deterministic


def _only(made: Generated, place: int) -> Generated:
    """A batch of the one at that place."""
    here = slice(place, place + 1)
    return Generated(
        images_NHWC=made.images_NHWC[here],
        finite=made.finite[here],
        prompt_tokens=made.prompt_tokens[here],
        prompt_truncated=made.prompt_truncated[here],
        safety_flagged=made.safety_flagged[here],
    )


def _joined(each: Sequence[Generated]) -> Generated:
    """One batch of batches of one."""
    return Generated(
        images_NHWC=np.concatenate([one.images_NHWC for one in each]),
        finite=np.concatenate([one.finite for one in each]),
        prompt_tokens=[one.prompt_tokens[0] for one in each],
        prompt_truncated=[one.prompt_truncated[0] for one in each],
        safety_flagged=[one.safety_flagged[0] for one in each],
    )


@contextmanager
def _no_shared_noise(pipeline_class: str) -> Iterator[None]:
    """Refuse noise from torch's global generator: it would depend on whatever was drawn before, not on the draw's seed.

    Several pipelines encode a condition with ``latent_dist.sample()`` and no generator (StableDiffusion3ControlNetPipeline
    among others); such a condition is its distribution's mode here.
    """
    sample, before = DiagonalGaussianDistribution.sample, torch.random.get_rng_state()

    def seeded_or_mode(self: DiagonalGaussianDistribution, generator: Any = None) -> torch.Tensor:
        return self.mode() if generator is None else sample(self, generator)

    DiagonalGaussianDistribution.sample = seeded_or_mode
    try:
        yield
    finally:
        DiagonalGaussianDistribution.sample = sample
    if not torch.equal(before, torch.random.get_rng_state()):
        raise ModelError(
            f"{pipeline_class} draws noise that no seed of ours decides, so its images could not be made again; use another pipeline"
        )


class _LastLatents:
    """``callback_on_step_end`` that remembers the latents: after a NaN, decoding leaves a black image and no trace."""

    def __init__(self, blend: Blend | None = None) -> None:
        self._latents: torch.Tensor | None = None
        self._blend = blend

    def __call__(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self._blend:
            tensors["latents"] = self._blend(pipe, step, tensors["latents"])
        self._latents = tensors["latents"]
        return tensors

    def finite(self, num_images: int) -> np.ndarray:
        """bool (N,): whether the latents of each image are finite; True where the pipeline shows none."""
        if self._latents is None or len(self._latents) != num_images:
            return np.ones(num_images, dtype=bool)
        return torch.isfinite(self._latents).flatten(1).all(dim=1).cpu().numpy()


def _makes_more_than_an_image(takes: Mapping[str, inspect.Parameter], mode: Mode) -> bool:
    """Whether a pipeline makes video or sound, or needs other inputs than texts and those of the mode."""
    needed = [name for name, one in takes.items() if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    return bool(_OTHER_MEDIA & set(takes)) or bool(set(needed) - {"prompt", "class_labels", *(_CONDITIONS if INPUTS[mode] else ())})


def _image_tensor(images_HWC: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images_HWC)).permute(0, 3, 1, 2).float() / 255


def _make_quiet() -> None:
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def _pin_arithmetic(cpu_threads: int) -> None:
    """Equal bytes on the same kind of device need the same number of threads and the same kernels."""
    torch.set_num_threads(cpu_threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def _flags(output: Any, num_images: int) -> list[bool | None]:
    flags = getattr(output, "nsfw_content_detected", None)
    return [None] * num_images if flags is None else [bool(flag) for flag in flags]
