"""What one image costs on its way to the disk: `python -m tests.benchmarks.encoding [--write]`. Prints Markdown tables,
and with `--write` puts them into docs/speed.md. Needs `pip install simplejpeg fpng-py` besides, for the encoders to compare with.

The pictures are 1/f noise, whose spectrum is that of photographs (Field 1987, doi.org/10.1364/JOSAA.4.002379), and flat
shapes as the demo model draws them: the two ends of what generators make.
"""

import io
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from jobs.bench import machine
from pipeline.encode import encode
from schemas.config import OutputConfig
from tests.benchmarks.page import fill

FORMATS = ("webp", "png", "jpeg")
REPEATS = 7


def photograph_like(size_px: int) -> np.ndarray:
    """1/f noise in correlated channels, uint8 (H, W, 3)."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(size_px)[:, None], np.fft.rfftfreq(size_px)[None])
    frequency[0, 0] = 1
    noise = rng.normal(size=(4, *frequency.shape)) + 1j * rng.normal(size=(4, *frequency.shape))
    planes = np.fft.irfft2(noise / frequency, s=(size_px, size_px))
    planes /= planes.std(axis=(1, 2), keepdims=True)
    return (128 + 45 * (planes[:1] + 0.3 * planes[1:])).clip(0, 255).astype(np.uint8).transpose(1, 2, 0).copy()


def shapes(size_px: int) -> np.ndarray:
    """Two discs on a ground, with a grain of one level, uint8 (H, W, 3)."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size_px, :size_px] / size_px
    image = np.full((size_px, size_px, 3), 200.0)
    image[np.hypot(x - 0.3, y - 0.4) < 0.2] = (200, 40, 40)
    image[np.hypot(x - 0.7, y - 0.6) < 0.15] = (40, 60, 200)
    return (image + rng.integers(0, 2, image.shape)).astype(np.uint8)


def rows() -> list[str]:
    """A line per format, picture and size."""
    lines = ["| picture | pixels | format | ms | kB |", "| --- | --- | --- | --- | --- |"]
    for name, make in (("photograph-like", photograph_like), ("flat shapes", shapes)):
        for size_px in (512, 1024):
            image = make(size_px)
            for form in FORMATS:
                ms, kb = measured(partial(whole, image, OutputConfig(image_format=form)))
                lines.append(f"| {name} | {size_px} | {form} | {ms:.0f} | {kb:.0f} |")
    return lines


def whole(image_HWC: np.ndarray, config: OutputConfig) -> bytes:
    """As a worker encodes."""
    return encode(image_HWC, config).data


def measured(encode_it: Callable[[], bytes]) -> tuple[float, float]:
    """Median milliseconds, and kilobytes."""
    seconds, data = [], b""
    for _ in range(REPEATS):
        started = time.perf_counter()
        data = encode_it()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds) * 1000, len(data) / 1000


def encoders(image_HWC: np.ndarray) -> dict[tuple[str, str], Callable[[], bytes]]:
    """Format and library to a call that only encodes."""
    import fpng_py  # pyright: ignore[reportMissingImports]
    import simplejpeg  # pyright: ignore[reportMissingImports]
    import torch
    from torchvision.io import encode_jpeg, encode_png

    height, width, _ = image_HWC.shape
    image, image_CHW = Image.fromarray(image_HWC), torch.from_numpy(image_HWC).permute(2, 0, 1).contiguous()

    def pillow(form: str, **options: Any) -> bytes:
        image.save(sink := io.BytesIO(), form, **options)
        return sink.getvalue()

    return {
        ("jpeg", "Pillow"): lambda: pillow("JPEG", quality=95, subsampling=0),
        ("jpeg", "simplejpeg"): lambda: simplejpeg.encode_jpeg(image_HWC, quality=95, colorsubsampling="444"),
        ("jpeg", "torchvision, chroma subsampled"): lambda: np.asarray(encode_jpeg(image_CHW, quality=95)).tobytes(),
        ("png", "Pillow"): lambda: pillow("PNG", compress_level=1),
        ("png", "torchvision"): lambda: encode_png(image_CHW, compression_level=1).numpy().tobytes(),
        ("png", "fpng"): lambda: bytes(fpng_py.fpng_encode_image_to_memory(image_HWC.tobytes(), width, height, 3)),
        ("webp", "Pillow"): lambda: pillow("WEBP", lossless=True, method=0, quality=0),
    }


def libraries() -> list[str]:
    """A line per format, library and picture, at 1024 px."""
    lines = ["| format | library | photograph-like: ms | kB | flat shapes: ms | kB |", "| --- | --- | --- | --- | --- | --- |"]
    photograph, flat = encoders(photograph_like(1024)), encoders(shapes(1024))
    for form, library in photograph:
        figures = [f"{value:.0f}" for calls in (photograph, flat) for value in measured(calls[form, library])]
        lines.append(f"| {form} | {library} | " + " | ".join(figures) + " |")
    return lines


if __name__ == "__main__":
    texts = [
        f"On one core of {machine()}, medians of {REPEATS}, hashes included:",
        "\n".join(rows()),
        "Encoding alone, at 1024 px, with other libraries:",
        "\n".join(libraries()),
    ]
    print("\n\n".join(texts))
    if "--write" in sys.argv:
        fill("encoding", texts)
