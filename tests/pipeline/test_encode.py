"""Encoded images decode to what was sampled; blankness and hashes are read off the pixels."""

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from pipeline.encode import encode, is_blank
from schemas.config import OutputConfig

NOISE = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def output(image_format: str) -> OutputConfig:
    return OutputConfig.model_validate({"image_format": image_format})


@pytest.mark.parametrize("image_format", ["webp", "png"])
def test_lossless_formats_keep_every_pixel(image_format: str) -> None:
    found = encode(NOISE, output(image_format))
    decoded = Image.open(io.BytesIO(found.data))
    assert (decoded.format or "").lower() == image_format
    np.testing.assert_array_equal(np.asarray(decoded.convert("RGB")), NOISE)
    assert found.sha256 == hashlib.sha256(found.data).hexdigest()


def test_jpeg_is_close_and_not_subsampled() -> None:
    smooth = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (64, 64, 3)).copy()
    decoded = np.asarray(Image.open(io.BytesIO(encode(smooth, output("jpeg")).data))).astype(int)
    assert np.abs(decoded - smooth).max() <= 4


def test_the_perceptual_hash_survives_a_change_of_brightness() -> None:
    image = np.asarray(Image.fromarray(NOISE).resize((128, 128), Image.Resampling.BICUBIC))
    brighter = np.clip(image.astype(int) + 8, 0, 255).astype(np.uint8)
    a, b = (int(encode(x, output("png")).phash, 16) for x in (image, brighter))
    assert (a ^ b).bit_count() <= 6


@pytest.mark.parametrize(("levels", "expected"), [(0, True), (2, True), (3, False)])
def test_blank_means_one_colour(levels: int, expected: bool) -> None:
    image = np.full((8, 8, 3), 100, np.uint8)
    image[0, 0, 1] += levels
    assert is_blank(Image.fromarray(image)) is expected
