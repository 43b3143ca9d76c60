"""Two models one after the other: the second, a refiner or an upscaler, goes on from the first one's pixels.

Pixels, not latents, because the two need not share a latent space. Base and refiner as a job's first and second stage: Podell
et al. 2023 (arXiv 2307.01952); cascades of super-resolution: Ho et al. 2021 (arXiv 2106.15282).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pipeline.inputs import Conditions
from pipeline.models.base import Generated
from pipeline.models.diffusers_model import DiffusersModel
from pipeline.models.modes import TRUE_CFG, WEIGHS_PROMPTS
from pipeline.models.resolve import ModelCard, second_stage_config
from schemas.config import ModelConfig
from schemas.records import Draw
from schemas.seeds import second_seed


class TwoStages:
    """An ImageModel of two. Not for use by two threads at once."""

    def __init__(self, card: ModelCard, config: ModelConfig) -> None:
        """Load both. Raises ModelError if a folder's parts do not fit together."""
        assert card.second_stage is not None
        assert config.second_stage is not None
        self.name, self.revision = card.name, card.revision
        self._stage, self._scale = config.second_stage, card.second_stage.input_scale
        self._second_weighs = card.second_stage.pipeline_class in WEIGHS_PROMPTS
        self._second_may_pass_twice = card.second_stage.guidance == "input" and card.second_stage.pipeline_class in TRUE_CFG
        self._first = DiffusersModel(replace(card, second_stage=None), config)
        self._second = DiffusersModel(card.second_stage, second_stage_config(config), self._first)

    def take_seconds(self) -> Mapping[str, float]:
        """Of both, by part, since the last call."""
        each = [self._first.take_seconds(), self._second.take_seconds()]
        return {name: sum(one.get(name, 0.0) for one in each) for name in {*each[0], *each[1]}}

    def generate(self, draws: Sequence[Draw], conditions: Sequence[Conditions] = ()) -> Generated:
        """Images of the draws, in order, at the second model's size."""
        small = [replace(draw, width=draw.width // self._scale, height=draw.height // self._scale) for draw in draws]
        first = self._first.generate(small, conditions)
        given = [Conditions(init_HWC=image) for image in first.images_NHWC]
        second = self._second.generate([self._second_draw(draw) for draw in draws], given)
        flags = [_either(*pair) for pair in zip(first.safety_flagged, second.safety_flagged, strict=True)]
        return replace(first, images_NHWC=second.images_NHWC, finite=first.finite & second.finite, safety_flagged=flags)

    def _second_draw(self, draw: Draw) -> Draw:
        stage = self._stage
        if not self._second_weighs:
            draw = replace(draw, prompt=draw.words, prompt_weighting=None)
        return replace(
            draw,
            mode=stage.mode,
            seed=second_seed(draw.seed),
            scheduler="default",
            steps=stage.steps or draw.steps,
            guidance_scale=draw.guidance_scale if stage.guidance_scale is None else stage.guidance_scale,
            true_cfg_scale=draw.true_cfg_scale if self._second_may_pass_twice else None,
            guidance_rescale=None,
            guidance_interval=None,
            strength=stage.strength if stage.mode == "image-to-image" else None,
        )


def _either(one: bool | None, other: bool | None) -> bool | None:
    """None where neither model checks."""
    return None if one is None and other is None else bool(one or other)
