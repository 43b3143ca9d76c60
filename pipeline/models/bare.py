"""The loop that one would write without promptmill: the measure of what the pipeline costs. For ``bench`` only."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.utils.pil_utils import numpy_to_pil

from pipeline.models.diffusers_model import borrowed
from pipeline.models.embeddings import accepted
from pipeline.models.resolve import ModelCard, second_stage_config
from pipeline.models.samplers import make_scheduler
from pipeline.models.switches import put_on_device
from pipeline.scorers.base import Scorer
from schemas.config import ModelConfig
from schemas.records import Draw
from schemas.seeds import second_seed


class BareLoop:
    """One pipeline, or two, batches of prompts, one generator per image, the same CLIP forward pass; nothing is kept."""

    def __init__(self, card: ModelCard, config: ModelConfig, threads: int) -> None:
        self._threads = threads
        diffusers.utils.logging.disable_progress_bar()
        self._first = _load(card, config, {})
        self._stage = config.second_stage
        self._scale = card.second_stage.input_scale if card.second_stage else 1
        self._second = _load(card.second_stage, second_stage_config(config), self._first.components) if card.second_stage else None

    def images_per_second(self, draws: Sequence[Draw], batch_size: int, scorers: Sequence[Scorer]) -> float:
        """Draw and score all of them; all draws share their call key and batches are full."""
        started = time.perf_counter()
        for i in range(0, len(draws), batch_size):
            batch = draws[i : i + batch_size]
            images_NHWC = self.draw(batch)
            for scorer in scorers:
                scorer.score(images_NHWC, [draw.words for draw in batch])
        return len(draws) / (time.perf_counter() - started)

    def draw(self, draws: Sequence[Draw]) -> np.ndarray:
        """Images uint8 (N, H, W, 3) of one batch, in one call of each pipeline."""
        first = draws[0]
        if first.scheduler != "default":
            self._first.scheduler = make_scheduler(first.scheduler, self._first.scheduler.config)
        torch.set_num_threads(self._threads)
        arguments: dict[str, Any] = {
            "prompt": [draw.words for draw in draws],
            "negative_prompt": [draw.negative_prompt for draw in draws],
            "num_inference_steps": first.steps,
            "guidance_scale": first.guidance_scale,
            "output_type": "np",
        }
        sides = {"width": first.width // self._scale, "height": first.height // self._scale}
        images = self._first(**arguments, **sides, generator=_generators([draw.seed for draw in draws])).images
        if self._second is not None and self._stage is not None:
            given = {"steps": "num_inference_steps", "guidance_scale": "guidance_scale", "strength": "strength"}
            own = {name: value for key, name in given.items() if (value := getattr(self._stage, key)) is not None}
            own |= {"image": numpy_to_pil(images), "generator": _generators([second_seed(draw.seed) for draw in draws])}
            images = self._second(**accepted(self._second.__call__, arguments | own)).images
        return (images * 255).round().astype(np.uint8)


def _load(card: ModelCard, config: ModelConfig, others: Mapping[str, Any]) -> Any:
    kind: Any = getattr(diffusers, card.pipeline_class)
    where = {"use_safetensors": True, "local_files_only": True, "variant": config.variant}
    pipe = kind.from_pretrained(card.folder, dtype=getattr(torch, config.dtype), **where, **borrowed(card, others))
    put_on_device(pipe, config.compute)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
