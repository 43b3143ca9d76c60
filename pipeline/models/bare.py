"""The loop that one would write without promptmill: the measure of what the pipeline costs. For ``bench`` only."""

import inspect
import time
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.utils.pil_utils import numpy_to_pil
from PIL import Image

from pipeline.inputs import Conditions, conditions
from pipeline.models.diffusers_model import AS_ASKED
from pipeline.models.embeddings import accepted
from pipeline.models.guidance import second_pass_scale
from pipeline.models.load_addons import reference_embeddings
from pipeline.models.load_pipeline import load_pipeline
from pipeline.models.modes import BLENDS
from pipeline.models.resolve import ModelCard, second_stage_config
from pipeline.models.samplers import make_scheduler
from pipeline.scorers.base import Scorer
from schemas.config import ModelConfig
from schemas.errors import ModelError
from schemas.records import Draw
from schemas.seeds import second_seed


class BareLoop:
    """One pipeline, or two, batches of prompts, one generator per image, the same CLIP forward pass; nothing is kept.

    The pipeline has the job's LoRA weights, embeddings, autoencoder, ControlNet and IP-Adapter. Raises ModelError where no
    plain call of diffusers does what the job does.
    """

    def __init__(self, card: ModelCard, config: ModelConfig, threads: int) -> None:
        if card.pipeline_class == BLENDS and card.mode in ("inpainting", "outpainting"):
            raise ModelError(f"model {card.name}: inpaints by blending, which no loop over {BLENDS} compares with; bench another mode")
        self._threads, self._card = threads, card
        diffusers.utils.logging.disable_progress_bar()
        self._first = load_pipeline(card, config, {})
        self._takes = inspect.signature(self._first.__call__).parameters
        if "prompt" not in self._takes:
            raise ModelError(
                f"model {card.name}: {card.pipeline_class} reads no text, which the loop to compare with does; bench another model"
            )
        self._scheduler = self._first.scheduler
        self._stage = config.second_stage
        self._scale = card.second_stage.input_scale if card.second_stage else 1
        self._second = load_pipeline(card.second_stage, second_stage_config(config), self._first.components) if card.second_stage else None

    def images_per_second(
        self, batches: Sequence[Sequence[Draw]], scorers: Sequence[Scorer], inputs: Mapping[str, bytes] | None = None
    ) -> float:
        """Draw and score all of them, a batch at a time. ``inputs`` are the files of their input images by sha256."""
        started = time.perf_counter()
        for batch in batches:
            given = [conditions(draw, (inputs or {}).__getitem__) for draw in batch]
            images_NHWC = self.draw(batch, given)
            for scorer in scorers:
                scorer.score(images_NHWC, [draw.words for draw in batch])
        return sum(map(len, batches)) / (time.perf_counter() - started)

    def draw(self, draws: Sequence[Draw], given: Sequence[Conditions] = ()) -> np.ndarray:
        """Images uint8 (N, H, W, 3) of one batch, in one call of each pipeline; all share their call key."""
        first = draws[0]
        if first.scheduler != "default":
            self._first.scheduler = make_scheduler(first.scheduler, self._scheduler.config)
        torch.set_num_threads(self._threads)
        arguments: dict[str, Any] = {
            "prompt": [draw.words for draw in draws],
            "negative_prompt": [draw.negative_prompt for draw in draws],
            "num_inference_steps": first.steps,
            "guidance_scale": first.guidance_scale,
            "true_cfg_scale": second_pass_scale(self._card.guidance, first),
            "guidance_rescale": first.guidance_rescale or 0.0,
            "output_type": "np",
            **AS_ASKED,
        }
        own = self._inputs(first, given) | {"generator": _generators([draw.seed for draw in draws])}
        own |= {"width": first.width // self._scale, "height": first.height // self._scale}
        images = self._first(**accepted(self._first.__call__, arguments | own)).images
        if self._second is not None and self._stage is not None:
            fields = {"steps": "num_inference_steps", "guidance_scale": "guidance_scale", "strength": "strength"}
            own = {name: value for key, name in fields.items() if (value := getattr(self._stage, key)) is not None}
            own |= {"image": numpy_to_pil(images), "generator": _generators([second_seed(draw.seed) for draw in draws])}
            images = self._second(**accepted(self._second.__call__, arguments | own)).images
        return (images * 255).round().astype(np.uint8)

    def _inputs(self, first: Draw, given: Sequence[Conditions]) -> dict[str, Any]:
        """Input images as the examples of diffusers hand them over."""
        found: dict[str, Any] = {"strength": first.strength} if first.strength is not None else {}
        for name, images in (
            ("image", [one.init_HWC for one in given]),
            ("mask_image", [None if one.mask_HW is None else one.mask_HW.astype(np.uint8) * 255 for one in given]),
            ("control_image" if "control_image" in self._takes else "image", [one.control_HWC for one in given]),
        ):
            if pictures := [Image.fromarray(image) for image in images if image is not None]:
                found[name] = pictures
        if first.control_scale is not None:
            found |= dict.fromkeys(("controlnet_conditioning_scale", "adapter_conditioning_scale"), first.control_scale)
        adapter = getattr(self._first, "adapter", None)
        if adapter is not None and adapter.config.in_channels == 1:
            found["image"] = [image.convert("L") for image in found["image"]]
        references = [one.reference_HWC for one in given if one.reference_HWC is not None]
        if references:
            self._first.set_ip_adapter_scale(first.control_scale if first.mode == "image-prompt" else first.reference_scale)
            guided = second_pass_scale(self._card.guidance, first) > 1
            found["ip_adapter_image_embeds"] = reference_embeddings(self._first, references, guided=guided)
        return found


def _generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
