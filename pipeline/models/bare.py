"""The loop that one would write without promptmill: the measure of what the pipeline costs. For ``bench`` only."""

import time
from collections.abc import Sequence
from typing import Any

import diffusers
import numpy as np
import torch

from pipeline.models.resolve import ModelCard
from pipeline.models.samplers import make_scheduler
from pipeline.models.switches import put_on_device
from pipeline.scorers.base import Scorer
from schemas.config import ModelConfig
from schemas.records import Draw


class BareLoop:
    """One pipeline, batches of prompts, one generator per image, the same CLIP forward pass; nothing is kept."""

    def __init__(self, card: ModelCard, config: ModelConfig, threads: int) -> None:
        self._threads = threads
        diffusers.utils.logging.disable_progress_bar()
        kind: Any = getattr(diffusers, card.pipeline_class)
        self._pipe: Any = kind.from_pretrained(card.folder, dtype=getattr(torch, config.dtype), use_safetensors=True, local_files_only=True)
        put_on_device(self._pipe, config.compute)
        self._pipe.set_progress_bar_config(disable=True)

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
        """Images uint8 (N, H, W, 3) of one batch, in one call of the pipeline."""
        first = draws[0]
        if first.scheduler != "default":
            self._pipe.scheduler = make_scheduler(first.scheduler, self._pipe.scheduler.config)
        torch.set_num_threads(self._threads)
        images = self._pipe(
            prompt=[draw.words for draw in draws],
            negative_prompt=[draw.negative_prompt for draw in draws],
            num_inference_steps=first.steps,
            guidance_scale=first.guidance_scale,
            width=first.width,
            height=first.height,
            generator=[torch.Generator("cpu").manual_seed(draw.seed) for draw in draws],
            output_type="np",
        ).images
        return (images * 255).round().astype(np.uint8)
