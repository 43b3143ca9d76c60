"""What makes images. ``resolve`` plans with a model, ``load_model`` loads it; neither is done at import."""

import os

from pipeline.models.base import ImageModel
from pipeline.models.resolve import ModelCard
from schemas.config import ModelConfig


def load_model(card: ModelCard, config: ModelConfig) -> ImageModel:
    """The model of a card, ready to draw. Raises ModelError if its parts do not make a text-to-image model."""
    if config.endpoint:
        from pipeline.models.endpoint import EndpointModel

        return EndpointModel(card, config)
    os.environ["DIFFUSERS_DISABLE_REMOTE_CODE"] = "1"  # read when diffusers is first imported
    from pipeline.models.diffusers_model import DiffusersModel

    return DiffusersModel(card, config)
