"""HPSv2: which image of a prompt people prefer, by open_clip's ViT-H-14 with weights that were trained on their choices
(Wu et al. 2023, arXiv 2306.09341).

The plain cosine, as the package hpsv2 gives it (https://github.com/tgxs002/HPSv2, ``hpsv2/img_score.py``); tables print it times 100.
Images are fitted into the square, not cropped, as there. Meant to rank images of one prompt.

There: open_clip's ViT-H-14 without QuickGELU, its tokenizer, the mean and deviation of OpenAI's images, weights under ``state_dict`` of
HPS_v2_compressed.pt (2.0) or HPS_v2.1_compressed.pt (2.1) from xswu/HPSv2, in half precision; here in single.
"""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipeline.scorers.clip import ClipParts, ClipScorer
from pipeline.scorers.resolve import ScorerCard
from schemas.errors import ModelError

ARCHITECTURE = "ViT-H-14"


class Hpsv2Scorer:
    """A CLIP score by other weights, which lie in one file."""

    def __init__(self, card: ScorerCard) -> None:
        """Raises ModelError if the file cannot be read, or holds no weights of the architecture."""
        self.name, self.version = card.name, card.version
        self._clip = ClipScorer(card, load=_load)

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """uint8 (N, H, W, 3) and N prompts -> cosines, float32 (N,)."""
        return self._clip.score(images_NHWC, prompts)

    def truncates(self, prompts: Sequence[str]) -> list[bool]:
        """For each prompt, whether its end lies beyond the model's context."""
        return self._clip.truncates(prompts)


def _load(card: ScorerCard, device: str) -> ClipParts:
    file = Path(card.head or "")
    model: Any = open_clip.CLIP(**(open_clip.get_model_config(ARCHITECTURE) or {}))
    try:
        model.load_state_dict(_weights(file))
    except (SafetensorError, OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"scorers.{card.name}: {file} holds no weights of {ARCHITECTURE} ({reason}); download HPSv2's again") from None
    model.to(device)
    settings = open_clip.transform.PreprocessCfg(size=model.visual.image_size, resize_mode="longest")
    return ClipParts(model=model, tokenizer=open_clip.get_tokenizer(ARCHITECTURE), settings=settings)


def _weights(file: Path) -> Mapping[str, torch.Tensor]:
    """Of a safetensors file, or of the published checkpoint, in which nothing but tensors is looked at."""
    if file.suffix == ".safetensors":
        return load_file(file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    except pickle.UnpicklingError:
        raise ValueError("it is no checkpoint, or one of more than tensors, which is never loaded") from None
