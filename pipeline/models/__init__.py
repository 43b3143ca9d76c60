"""What makes images. ``resolve`` plans with a model, ``load_model`` loads it; neither is done at import."""

import logging
import os

from pipeline.models.base import ImageModel
from pipeline.models.here import on_this_machine
from pipeline.models.resolve import ModelCard
from schemas.config import ModelConfig


def load_model(card: ModelCard, config: ModelConfig) -> ImageModel:
    """The model of a card, ready to draw.

    Raises ModelError if this machine's files are not those of the card, or do not make a model for its mode.
    """
    card = on_this_machine(card, config)
    if config.endpoint:
        from pipeline.models.endpoint import EndpointModel

        return EndpointModel(card, config)
    os.environ["DIFFUSERS_DISABLE_REMOTE_CODE"] = "1"  # read when diffusers is first imported
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # else it warns of torchao, where that is installed,
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # and so does torch
    from pipeline.models.diffusers_model import DiffusersModel
    from pipeline.models.two_stages import TwoStages

    return TwoStages(card, config) if card.second_stage else DiffusersModel(card, config)
