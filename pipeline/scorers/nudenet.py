"""Nudity by NudeNet, a small detector whose weights come with its package (https://github.com/notAI-tech/NudeNet). Its only importer.

The package is not part of promptmill's requirements: its wheel carries the AGPL-3.0.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.scorers.resolve import ScorerCard

EXPOSED = frozenset({"FEMALE_BREAST_EXPOSED", "FEMALE_GENITALIA_EXPOSED", "MALE_GENITALIA_EXPOSED", "BUTTOCKS_EXPOSED", "ANUS_EXPOSED"})


class NudenetScorer:
    """The detector of 320 pixels, on this machine's CPU cores. Each image is looked at by itself."""

    def __init__(self, card: ScorerCard) -> None:
        from nudenet import NudeDetector

        self.name, self.version = card.name, card.version
        self._detector: Any = NudeDetector()

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """uint8 (N, H, W, 3) -> float32 (N,): confidence of the surest detection of what is ``EXPOSED``, 0 if there is none over 0.2."""
        return np.array([self._surest(image) for image in images_NHWC], dtype=np.float32)

    def _surest(self, image_HWC: np.ndarray) -> float:
        found = self._detector.detect(np.ascontiguousarray(image_HWC[:, :, ::-1]))  # as OpenCV reads a file
        return max((one["score"] for one in found if one["class"] in EXPOSED), default=0.0)
