"""Measures the ways of `ways.py` in turns: `python -m tests.benchmarks.compare [--rounds 2] [--draws 128] [--write]`.

Each way runs in a process of its own, one after the other, round after round, so that a machine that slows down slows all; every
second round goes backwards, since a machine that has worked for a while may be slower than one that begins.
The ratios are medians of the rounds' ratios. `--write` puts table and chart into docs/speed.md and docs/speed.svg.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from jobs.bench import machine
from tests.benchmarks import narrow_sd
from tests.benchmarks.page import fill
from tests.benchmarks.ways import WAYS
from tests.conftest import REPOSITORY

LABELS = {
    "limit": "forward passes alone, a process per core",
    "bare_loop": "bare diffusers loop, batches",
    "one_by_one": "bare diffusers loop, one prompt at a time",
    "datadreamer": "datadreamer's loop: one prompt at a time, files",
    "ray_data": "Ray Data: map_batches, write_parquet",
    "promptmill_local": "promptmill, local executor",
    "promptmill_ray_1": "promptmill, Ray, one actor",
    "promptmill_ray": "promptmill, Ray, an actor per core",
}

ONE_BY_ONE = ("one_by_one", "datadreamer")  # slow, and the rate does not depend on the number
NARROW = ("limit", "ray_data", "promptmill_ray")  # of the slower model: what the goals are about


@dataclass(frozen=True)
class Measured:
    """One way over all rounds."""

    way: str
    rates: tuple[float, ...]
    startups: tuple[float, ...]
    peak_rss_mb: int

    @property
    def rate(self) -> float:
        """Images per second, median."""
        return statistics.median(self.rates)


def measure(config: Path, ways: Sequence[str], *, rounds: int, draws: int) -> dict[str, Measured]:
    """All ways in turns."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for number in range(rounds):
        for way in ways if number % 2 == 0 else reversed(ways):
            count = draws // 4 if way in ONE_BY_ONE else draws
            command = [sys.executable, "-m", "tests.benchmarks.ways", way, str(config), str(count)]
            ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
            if ran.returncode:
                raise SystemExit(f"{way}: {ran.stderr[-2000:]}")
            found[way].append(json.loads(ran.stdout.splitlines()[-1]))
            last = found[way][-1]
            print(f"round {number + 1}: {LABELS[way]}: {last['images'] / last['seconds']:.2f} images/s", file=sys.stderr, flush=True)
    return {
        way: Measured(
            way,
            tuple(one["images"] / one["seconds"] for one in each),
            tuple(one["startup_seconds"] for one in each),
            int(max(one["peak_rss_bytes"] for one in each) / 1e6),
        )
        for way, each in found.items()
    }


def ratio(of: Measured, *to: Measured) -> float:
    """Median over the rounds of one rate by the largest of others."""
    return statistics.median(rate / max(other.rates[number] for other in to) for number, rate in enumerate(of.rates))


def table(found: dict[str, Measured]) -> str:
    """Markdown; shares are of the limit, the faster of the two loops without any writing."""
    limits = [found[way] for way in ("limit", "bare_loop") if way in found]
    lines = [
        "| way | images/s | lowest to highest | of the limit | start-up s | memory of a process MB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for way, one in found.items():
        spread, startup = f"{min(one.rates):.2f} to {max(one.rates):.2f}", statistics.median(one.startups)
        lines.append(f"| {LABELS[way]} | {one.rate:.2f} | {spread} | {ratio(one, *limits):.2f} | {startup:.1f} | {one.peak_rss_mb} |")
    return "\n".join(lines)


def chart(found: dict[str, Measured], title: str) -> str:
    """Bars of the medians as SVG, with the spread of the rounds as a line."""
    width, row, left = 780, 34, 320
    scale = (width - left - 70) / max(max(one.rates) for one in found.values())
    height = 46 + row * len(found)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="#fff"/><text x="12" y="24" font-weight="bold" fill="#222">{escape(title)}</text>',
    ]
    for number, (way, one) in enumerate(found.items()):
        y = 40 + row * number
        colour = "#2a6fbb" if way.startswith("promptmill") else "#b9c2cc"
        low, high = (left + scale * edge(one.rates) for edge in (min, max))
        parts += [
            f'<text x="{left - 8}" y="{y + 17}" text-anchor="end" fill="#222">{escape(LABELS[way])}</text>',
            f'<rect x="{left}" y="{y}" width="{scale * one.rate:.1f}" height="{row - 10}" rx="2" fill="{colour}"/>',
            f'<path d="M{low:.1f} {y + 12}H{high:.1f}" stroke="#222" stroke-width="1.5"/>',
            f'<text x="{high + 8:.1f}" y="{y + 17}" fill="#222">{one.rate:.2f}</text>',
        ]
    return "\n".join([*parts, "</svg>\n"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--draws", type=int, default=128, help="images a round of the demo model, in 64s")
    parser.add_argument("--narrow-rounds", type=int, default=2)
    parser.add_argument("--narrow-draws", type=int, default=32, help="images a round of the other model, in 32s")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--write", action="store_true", help="put table and chart into the docs")
    args = parser.parse_args()
    demo = measure(REPOSITORY / "configs" / "demo.yaml", args.ways, rounds=args.rounds, draws=args.draws)
    with tempfile.TemporaryDirectory() as folder:
        ways = [way for way in args.ways if way in NARROW]
        narrow = measure(narrow_sd.job(Path(folder)), ways, rounds=args.narrow_rounds, draws=args.narrow_draws)
    texts = [
        f"On {machine()}, in turns, every second round in reverse order. Lines in the chart reach from the slowest to the fastest round.",
        f"The demo model, {args.rounds} rounds of {args.draws} images:\n\n{table(demo)}",
        f"A U-Net of Stable Diffusion 1.5's shape at a tenth of its width, {narrow_sd.SIZE_PX} px, random weights,"
        f" {args.narrow_rounds} rounds of {args.narrow_draws} images:\n\n{table(narrow)}",
    ]
    print("\n\n".join(texts))
    if args.write:
        (REPOSITORY / "docs" / "speed.svg").write_text(chart(demo, "demo model, images per second"))
        fill("measured", texts)


if __name__ == "__main__":
    main()
