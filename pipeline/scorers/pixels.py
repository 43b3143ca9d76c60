"""What pixels alone tell: sharpness, entropy, clipping. Each is one number of one image; grey is BT.601 luma, 0 to 255."""

from collections.abc import Sequence

import numpy as np

from pipeline.scorers.resolve import ScorerCard

LUMA = np.array([0.299, 0.587, 0.114])


class Sharpness:
    """Variance of the Laplacian of grey (Pech-Pacheco et al. 2000): low for blurred images. Depends on size and subject."""

    def __init__(self, card: ScorerCard) -> None:
        self.name, self.version = card.name, card.version

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """uint8 (N, H, W, 3) -> float32 (N,), squared levels; NaN for images of less than 3 x 3 pixels."""
        return np.array([_laplacian_variance(image @ LUMA) for image in images_NHWC], dtype=np.float32)


class Entropy:
    """Entropy of the histogram of grey, in bits: 0 for one flat colour, 8 at the most."""

    def __init__(self, card: ScorerCard) -> None:
        self.name, self.version = card.name, card.version

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """uint8 (N, H, W, 3) -> float32 (N,), bits."""
        return np.array([_bits(np.rint(image @ LUMA).astype(np.uint8)) for image in images_NHWC], dtype=np.float32)


class Clipped:
    """Share of the values that are 0 or 255, over pixels and channels: high for blown-out and crushed images."""

    def __init__(self, card: ScorerCard) -> None:
        self.name, self.version = card.name, card.version

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """uint8 (N, H, W, 3) -> float32 (N,), 0 to 1."""
        return ((images_NHWC == 0) | (images_NHWC == 255)).mean(axis=(1, 2, 3)).astype(np.float32)


def _laplacian_variance(grey_HW: np.ndarray) -> float:
    if min(grey_HW.shape) < 3:
        return float("nan")
    sides = grey_HW[:-2, 1:-1] + grey_HW[2:, 1:-1] + grey_HW[1:-1, :-2] + grey_HW[1:-1, 2:]
    return float((sides - 4 * grey_HW[1:-1, 1:-1]).var())


def _bits(grey_HW: np.ndarray) -> float:
    shares = np.bincount(grey_HW.ravel(), minlength=256) / grey_HW.size
    shares = shares[shares > 0]
    return float(abs((shares * np.log2(shares)).sum()))
