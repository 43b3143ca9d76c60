"""Probability of the prompt among prompts in which one word is another: is it a red circle, or rather a blue one?

The softmax over texts of CLIP's zero-shot classification (Radford et al. 2021, arXiv 2103.00020, section 3.1), with the model's
own temperature. The texts follow from the prompt and the choices alone, so batch-mates change nothing.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from pipeline.scorers.clip import ClipScorer
from pipeline.scorers.resolve import ScorerCard


class ChoiceScorer:
    """One CLIP model and lists of words that could stand for each other."""

    def __init__(self, card: ScorerCard) -> None:
        """Raises ModelError as ClipScorer does."""
        self.name, self.version = card.name, card.version
        self._clip = ClipScorer(card)
        self._choices = card.choices

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """uint8 (N, H, W, 3) and N prompts -> probabilities, float32 (N,); NaN where none of the words is in the prompt."""
        images_ND = self._clip.images(images_NHWC)
        return np.array([self._probability(image_D, prompt) for image_D, prompt in zip(images_ND, prompts, strict=True)], dtype=np.float32)

    def truncates(self, prompts: Sequence[str]) -> list[bool]:
        """For each prompt, whether its end lies beyond the model's context."""
        return self._clip.truncates(prompts)

    def _probability(self, image_D: torch.Tensor, prompt: str) -> float:
        others = distractors(prompt, self._choices)
        if not others:
            return float("nan")
        logits = self._clip.logit_scale * (self._clip.texts([prompt, *others]) * image_D).sum(dim=-1)
        return float(logits.softmax(dim=0)[0])


def distractors(prompt: str, choices: Mapping[str, Sequence[str]]) -> list[str]:
    """The prompt with one word replaced by each other one of its list, for each place where such a word stands; a plural's s stays."""
    found: dict[str, None] = {}
    for words in choices.values():
        either = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
        for place in re.finditer(rf"(?<!\w)({either})(?=s?(?!\w))", prompt, re.IGNORECASE):
            others = [word for word in words if word.lower() != place[0].lower()]
            found |= dict.fromkeys(prompt[: place.start()] + word + prompt[place.end() :] for word in others)
    return list(found)
