"""Writes a prompt file with init images: ``python -m pipeline.models.demo.write_inputs FOLDER --count 12``.

FOLDER gets ``image-to-image.csv`` and the drawings that it names. Each shows a pair; its prompt wants one of the two objects
in another colour.
"""

from __future__ import annotations

import argparse
import csv
import random
from dataclasses import replace
from pathlib import Path

from PIL import Image

from pipeline.models.demo.grammar import COLOURS, Scene, is_drawable, sample_scenes
from pipeline.models.demo.render import render


def write_inputs(folder: Path, *, count: int, seed: int) -> list[Scene]:
    """Write the prompt file and its drawings; the scenes that the prompts ask for."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"inputs/{seed}")
    wanted = []
    with (folder / "image-to-image.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["prompt", "init_image"])
        for number, shown in enumerate([scene for scene in sample_scenes(3 * count, seed=seed) if scene.kind == "two"]):
            scene, name = _recoloured(shown, rng), f"pair_{number:03d}.png"
            Image.fromarray(render(shown, seed + number)).save(folder / name)
            writer.writerow([scene.caption(), name])
            wanted.append(scene)
    return wanted


def _recoloured(shown: Scene, rng: random.Random) -> Scene:
    while True:
        first, second = shown.objects
        scene = replace(shown, objects=(first, replace(second, colour=rng.choice(COLOURS))))
        if scene != shown and is_drawable(scene):
            return scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_inputs(args.folder, count=args.count, seed=args.seed)


if __name__ == "__main__":
    main()
