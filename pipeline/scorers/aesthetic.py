"""A linear or multi-layer head over CLIP's image features, from a file of the user's: aesthetics, or whatever it was trained for.

Reads the layers of LAION's predictors (https://github.com/christophschuhmann/improved-aesthetic-predictor, saved as
safetensors): matrices and biases in the order of their numbers, features of length 1 as input. Between the layers there is
nothing, as there, unless the file's metadata says ``activation: relu``.
"""

import re
from collections.abc import Sequence

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from pipeline.scorers.clip import ClipScorer
from pipeline.scorers.resolve import ScorerCard
from schemas.errors import ModelError


class AestheticScorer:
    """One CLIP model and one head."""

    def __init__(self, card: ScorerCard) -> None:
        """Raises ModelError if the head's layers do not fit each other or the model."""
        self.name, self.version = card.name, card.version
        self._clip = ClipScorer(card)
        self._layers, self._relu = _load(card)
        width = self._clip.texts([""]).shape[-1]
        shapes = [tuple(weight.shape) for weight, _ in self._layers]
        if [inner for _, inner in shapes] != [width, *(outer for outer, _ in shapes[:-1])] or shapes[-1][0] != 1:
            raise ModelError(f"scorers.{card.name}: {card.head} has layers {shapes}; they must lead from {width} features to 1 number")

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """uint8 (N, H, W, 3) -> float32 (N,), on the scale that the head was trained on."""
        with torch.inference_mode():
            hidden = self._clip.images(images_NHWC)
            for at, (weight, bias) in enumerate(self._layers):
                hidden = torch.nn.functional.linear(hidden, weight.to(hidden.device), bias.to(hidden.device))
                if self._relu and at < len(self._layers) - 1:
                    hidden = hidden.relu()
            return hidden[:, 0].cpu().numpy().astype(np.float32)


def _load(card: ScorerCard) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], bool]:
    try:
        with safe_open(card.head, framework="pt") as file:
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - no mapping
            relu = (file.metadata() or {}).get("activation") == "relu"
    except (SafetensorError, OSError) as error:
        raise ModelError(f"scorers.{card.name}: {card.head} cannot be read ({error}); copy or download it again") from None
    names = sorted((name for name in tensors if name.endswith("weight")), key=_numbers)
    layers = [(tensors[name], tensors.get(name.removesuffix("weight") + "bias", torch.zeros(len(tensors[name])))) for name in names]
    if not layers or any(weight.ndim != 2 for weight, _ in layers):
        raise ModelError(f"scorers.{card.name}: {card.head} holds no linear layers; give tensors named NUMBER.weight and NUMBER.bias")
    return layers, relu


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]
