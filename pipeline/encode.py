"""Pixels to bytes, and what is read off the pixels on the way: hashes and blankness."""

import hashlib
import io
import time
from dataclasses import dataclass, field

import imagehash
import numpy as np
from PIL import Image, ImageStat

from schemas.config import OutputConfig

BLANK_RANGE = 2  # levels of 255; flat colour after rounding or light compression


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """One encoded image. ``hash_seconds`` went into what is told of it besides the data."""

    data: bytes
    sha256: str
    phash: str
    is_blank: bool
    hash_seconds: float = field(compare=False)


def encode(image_HWC: np.ndarray, config: OutputConfig) -> Encoded:
    """Encode uint8 (H, W, 3). webp and png are lossless; Pillow releases the GIL while it encodes."""
    image = Image.fromarray(image_HWC)
    sink = io.BytesIO()
    match config.image_format:
        case "webp":  # method 0, quality 0: a third of the default's time for 10 % more bytes
            image.save(sink, "WEBP", lossless=True, method=0, quality=0)
        case "png":
            image.save(sink, "PNG", compress_level=1)
        case "jpeg":
            image.save(sink, "JPEG", quality=config.jpeg_quality, subsampling=0)
    data, started = sink.getvalue(), time.perf_counter()
    sha256, phash, blank = hashlib.sha256(data).hexdigest(), str(imagehash.phash(image)), is_blank(image)
    return Encoded(data=data, sha256=sha256, phash=phash, is_blank=blank, hash_seconds=time.perf_counter() - started)


def is_blank(image: Image.Image) -> bool:
    """All pixels of an RGB image have one colour, within ``BLANK_RANGE`` levels per channel."""
    return all(high - low <= BLANK_RANGE for low, high in ImageStat.Stat(image).extrema)
