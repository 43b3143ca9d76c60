"""The seam between the pipeline and whatever judges images with a number."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np


class Scorer(Protocol):
    """Gives each image one number, by itself alone: batch-mates must not change it.

    ``name`` is set by the configuration's key and names the columns; ``version`` identifies model and weights.
    """

    name: str
    version: str

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """uint8 (N, H, W, 3) and N prompts -> float32 (N,); NaN where the scorer cannot tell."""
        ...


@runtime_checkable
class TextScorer(Protocol):
    """What a scorer offers besides, if it reads the prompt with a limited context."""

    def truncates(self, prompts: Sequence[str]) -> list[bool]:
        """For each prompt, whether its end lies beyond the scorer's context."""
        ...
