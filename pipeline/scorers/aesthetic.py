"""A linear or multi-layer head over CLIP's image features, from a file of the user's: aesthetics, nudity, whatever it was trained for.

Reads the layers of LAION's predictors, saved as safetensors: matrices and biases in the order of their numbers, features of length 1
as input, from which ``norm.mean`` is taken, over the root of ``norm.variance``, if there are such. What is not a weight, the file's
metadata tell: ``activation: relu`` stands for one between any two layers, ``sequential`` for one between those whose numbers are not
neighbours (a torch Sequential counts its activations and dropouts too), and ``output: sigmoid`` for one at the end.

Of https://github.com/LAION-AI/CLIP-based-NSFW-Detector (``src/models.py``) the heads of ViT-B-32 and ViT-L-14 are ``norm.mean``,
``norm.variance``, ``linear_1`` to ``linear_3`` or ``4``, with ReLUs and a sigmoid; that of ViT-H-14 is ``layers.0``, ``3`` and so on to
``15`` and ``16``, with nothing between the last two and no sigmoid. Those of
https://github.com/christophschuhmann/improved-aesthetic-predictor are ``layers.0``, ``2``, ``4``, ``6``, ``7`` with dropouts alone.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from pipeline.scorers.clip import ClipScorer
from pipeline.scorers.resolve import ScorerCard
from schemas.errors import ModelError

KNOWN = {"activation": ("relu", "sequential"), "output": ("sigmoid",)}  # metadata of a head


class AestheticScorer:
    """One CLIP model and one head."""

    def __init__(self, card: ScorerCard) -> None:
        """Raises ModelError if the head's layers do not fit each other or the model."""
        self.name, self.version = card.name, card.version
        self._clip = ClipScorer(card)
        self._head = _load(card)
        width = self._clip.texts([""]).shape[-1]
        shapes = [tuple(weight.shape) for weight, _ in self._head.layers]
        if [inner for _, inner in shapes] != [width, *(outer for outer, _ in shapes[:-1])] or shapes[-1][0] != 1:
            raise ModelError(f"scorers.{card.name}: {card.head} has layers {shapes}; they must lead from {width} features to 1 number")
        if any(norm.shape not in ((), (width,)) for norm in (self._head.mean, self._head.variance)):
            raise ModelError(f"scorers.{card.name}: {card.head} has a norm.mean or norm.variance that is not of {width} features")

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """uint8 (N, H, W, 3) -> float32 (N,), on the scale that the head was trained on."""
        with torch.inference_mode():
            return self._head(self._clip.images(images_NHWC)).cpu().numpy().astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    layers: list[tuple[torch.Tensor, torch.Tensor]]
    mean: torch.Tensor
    variance: torch.Tensor
    relu_after: frozenset[int]
    sigmoid: bool

    def __call__(self, features_ND: torch.Tensor) -> torch.Tensor:
        device = features_ND.device
        hidden = (features_ND - self.mean.to(device)) / (self.variance.to(device).sqrt() + 1e-10)
        for at, (weight, bias) in enumerate(self.layers):
            hidden = torch.nn.functional.linear(hidden, weight.to(device), bias.to(device))
            if at in self.relu_after:
                hidden = hidden.relu()
        return hidden[:, 0].sigmoid() if self.sigmoid else hidden[:, 0]


def _load(card: ScorerCard) -> _Head:
    try:
        with safe_open(card.head, framework="pt") as file:
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - no mapping
            said = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"scorers.{card.name}: {card.head} cannot be read ({error}); copy or download it again") from None
    mean, variance = tensors.pop("norm.mean", torch.zeros(())), tensors.pop("norm.variance", torch.ones(()))
    names = sorted((name for name in tensors if name.endswith("weight")), key=_numbers)
    layers = [(tensors[name], tensors.get(name.removesuffix("weight") + "bias", torch.zeros(len(tensors[name])))) for name in names]
    if not layers or any(weight.ndim != 2 for weight, _ in layers):
        raise ModelError(f"scorers.{card.name}: {card.head} holds no linear layers; give tensors named NUMBER.weight and NUMBER.bias")
    unknown = sorted(set(tensors) - set(names) - {name.removesuffix("weight") + "bias" for name in names})
    if unknown:
        raise ModelError(f"scorers.{card.name}: {card.head} holds {unknown[0]}, no part of a linear layer; such heads are not read")
    for key, known in KNOWN.items():
        if said.get(key) not in (None, *known):
            raise ModelError(f"scorers.{card.name}: {card.head} says {key}: {said[key]!r}; known is {', '.join(known)}, or nothing")
    between = range(len(layers) - 1)
    last = [_numbers(name)[-1:] or [0] for name in names]
    apart = {at for at in between if last[at + 1][0] - last[at][0] > 1}
    relu_after = {None: (), "relu": between, "sequential": apart}[said.get("activation")]
    return _Head(layers=layers, mean=mean, variance=variance, relu_after=frozenset(relu_after), sigmoid="output" in said)


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]
