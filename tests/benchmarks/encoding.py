"""What one image costs on its way to the disk: `python -m tests.benchmarks.encoding [--write]`. Prints a Markdown table,
and with `--write` puts it into docs/speed.md.

The pictures are 1/f noise, whose spectrum is that of photographs (Field 1987, doi.org/10.1364/JOSAA.4.002379), and flat
shapes as the demo model draws them: the two ends of what generators make.
"""

import statistics
import sys
import time

import numpy as np

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
                config, seconds = OutputConfig(image_format=form), []
                n_bytes = len(encode(image, config).data)
                for _ in range(REPEATS):
                    started = time.perf_counter()
                    encode(image, config)
                    seconds.append(time.perf_counter() - started)
                lines.append(f"| {name} | {size_px} | {form} | {statistics.median(seconds) * 1000:.0f} | {n_bytes / 1000:.0f} |")
    return lines


if __name__ == "__main__":
    texts = [f"On one core of {machine()}, medians of {REPEATS}, hashes included:", "\n".join(rows())]
    print("\n\n".join(texts))
    if "--write" in sys.argv:
        fill("encoding", texts)
