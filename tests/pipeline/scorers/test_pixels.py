"""Pixel scores are the textbook's numbers."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from pipeline.scorers import load_scorer
from pipeline.scorers.resolve import resolve_scorer
from schemas.config import ScorerConfig
from schemas.errors import ModelError

NOISE = np.random.default_rng(0).integers(1, 255, (32, 32, 3), dtype=np.uint8)
FLAT = np.full((32, 32, 3), 77, dtype=np.uint8)


def score(kind: str, *images: np.ndarray) -> list[float]:
    scorer = load_scorer(resolve_scorer("pixels", ScorerConfig(type=kind), base_dir=Path.cwd()))
    found = scorer.score(np.stack(images), [""] * len(images))
    assert found.dtype == np.float32
    return found.tolist()


def test_blur_lowers_sharpness_and_a_flat_image_has_none() -> None:
    blurred = np.asarray(Image.fromarray(NOISE).filter(ImageFilter.GaussianBlur(2)))
    sharp, soft, none = score("sharpness", NOISE, blurred, FLAT)
    assert sharp > 20 * soft > 0
    assert none == pytest.approx(0, abs=1e-9)
    dot = np.zeros((5, 5, 3), dtype=np.uint8)
    dot[2, 2] = 10
    assert score("sharpness", dot)[0] == pytest.approx(np.var([-40, 10, 10, 10, 10, 0, 0, 0, 0]))
    assert np.isnan(score("sharpness", dot[:2])[0])


def test_entropy_counts_bits_of_grey() -> None:
    half = FLAT.copy()
    half[:16] = 200
    four = FLAT.copy()
    four[:8], four[8:16], four[16:24] = 1, 2, 3
    assert score("entropy", FLAT, half, four) == pytest.approx([0, 1, 2])


def test_clipped_is_the_share_of_extreme_values() -> None:
    burnt = FLAT.copy()
    burnt[:8, :, 0], burnt[:8, :, 1] = 255, 0
    assert score("clipped", NOISE, burnt) == pytest.approx([0, 2 / 12])


def test_pixels_need_no_model() -> None:
    with pytest.raises(ModelError, match="looks at pixels only; take 'model' out"):
        resolve_scorer("pixels", ScorerConfig(type="entropy", model="demo"), base_dir=Path.cwd())
