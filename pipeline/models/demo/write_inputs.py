"""Writes prompt files with input images: ``python -m pipeline.models.demo.write_inputs FOLDER --count 12``.

FOLDER gets drawings of pairs and a prompt file for each mode. ``image-to-image.csv`` wants one of the two objects in another
colour, ``control.csv`` both, and ``super-resolution.csv`` the drawing as it is, from a quarter of its width and height.
"""

from __future__ import annotations

import argparse
import csv
import random
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.models.demo.grammar import COLOURS, Scene, is_drawable, sample_scenes
from pipeline.models.demo.render import render

STRENGTH = 0.8
CANNY = (50, 100)
SCALE = 4


def write_inputs(folder: Path, *, count: int, seed: int) -> dict[str, list[Scene]]:
    """Write prompt files and drawings; by mode, the scenes that its prompts ask for."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"inputs/{seed}")
    shown = [scene for scene in sample_scenes(3 * count, seed=seed) if scene.kind == "two"]
    for number, scene in enumerate(shown):
        drawing = render(scene, seed + number)
        Image.fromarray(drawing).save(folder / f"pair_{number:03d}.png")
        Image.fromarray(shrunk(drawing)).save(folder / f"small_{number:03d}.png")
    wanted = {
        "image-to-image": [recoloured(scene, rng, which=[1]) for scene in shown],
        "control": [recoloured(scene, rng, which=[0, 1]) for scene in shown],
        "super-resolution": shown,
    }
    for mode, scenes in wanted.items():
        column = "control_image" if mode == "control" else "init_image"
        kind = "small" if mode == "super-resolution" else "pair"
        with (folder / f"{mode}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["prompt", column])
            writer.writerows([scene.caption(), f"{kind}_{number:03d}.png"] for number, scene in enumerate(scenes))
    return wanted


def recoloured(shown: Scene, rng: random.Random, *, which: Collection[int]) -> Scene:
    """The scene with the objects of these numbers in other colours; objects of a kind keep one in common."""
    while True:
        colours = [rng.choice(COLOURS) for _ in shown.objects]
        if shown.kind == "count":
            colours = colours[:1] * shown.count
        objects = [replace(thing, colour=colours[k]) if k in which else thing for k, thing in enumerate(shown.objects)]
        scene = replace(shown, objects=tuple(objects))
        if is_drawable(scene) and all(scene.objects[k] != shown.objects[k] for k in which):
            return scene


def shrunk(drawing_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The drawing at a quarter of its width and height, each pixel the mean of those that it stands for."""
    height, width, channels = drawing_HWC.shape
    blocks = drawing_HWC.reshape(height // SCALE, SCALE, width // SCALE, SCALE, channels)
    return blocks.mean(axis=(1, 3)).round().astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_inputs(args.folder, count=args.count, seed=args.seed)


if __name__ == "__main__":
    main()
