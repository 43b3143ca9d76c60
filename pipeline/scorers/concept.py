"""Probability that an image shows one thing rather than others, each told by texts: nudity, a photograph, whatever CLIP has words for.

The softmax over texts of CLIP's zero-shot classification (Radford et al. 2021, arXiv 2103.00020, section 3.1), with the model's own
temperature, summed over the texts of the concept. Looking for concepts in CLIP's space is what the safety checker of Stable Diffusion
does (Rando et al. 2022, arXiv 2210.04610), with cosines and thresholds of its own.
"""

from collections.abc import Sequence

import numpy as np
import torch

from pipeline.scorers.clip import ClipScorer
from pipeline.scorers.resolve import ScorerCard


class ConceptScorer:
    """One CLIP model and two lists of texts; the prompt plays no part."""

    def __init__(self, card: ScorerCard) -> None:
        """Raises ModelError as ClipScorer does."""
        self.name, self.version = card.name, card.version
        self._clip = ClipScorer(card)
        self._texts_TD = self._clip.texts([*card.choices["concept"], *card.choices["other"]])
        self._concepts = len(card.choices["concept"])

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """uint8 (N, H, W, 3) -> probabilities, float32 (N,)."""
        with torch.inference_mode():
            cosines_NT = (self._clip.images(images_NHWC)[:, None] * self._texts_TD).sum(dim=-1)
            odds_NT = (self._clip.logit_scale * cosines_NT).softmax(dim=-1)
            return odds_NT[:, : self._concepts].sum(dim=-1).cpu().numpy().astype(np.float32)
