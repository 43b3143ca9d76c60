"""Writes prompt files with input images: ``python -m pipeline.models.demo.write_inputs FOLDER --count 12``.

FOLDER gets drawings of pairs and a prompt file for each mode. ``image-to-image.csv`` and ``inpainting.csv`` want one of the two
objects in another colour, ``control.csv`` both, ``super-resolution.csv`` the drawing as it is, from a quarter of its width and
height, and ``outpainting.csv`` the whole pair from its left half.
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
from pipeline.models.demo.render import SIZE_PX, render

STRENGTH = 0.8
CANNY = (50, 100)
SCALE = 4
HALF = SIZE_PX // 2
SIDES = {
    "left of": (slice(None), slice(HALF, None)),
    "right of": (slice(None), slice(HALF)),
    "above": (slice(HALF, None),),
    "below": (slice(HALF),),
}
"""Rows and columns of the second object, by where the first one is."""


def write_inputs(folder: Path, *, count: int, seed: int) -> dict[str, list[Scene]]:
    """Write prompt files and drawings; by mode, the scenes that its prompts ask for."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"inputs/{seed}")
    shown = [scene for scene in sample_scenes(3 * count, seed=seed) if scene.kind == "two"]
    beside = [replace(scene, relation="left of") for scene in shown]
    for number, (scene, row) in enumerate(zip(shown, beside, strict=True)):
        drawing = render(scene, seed + number)
        Image.fromarray(drawing).save(folder / f"pair_{number:03d}.png")
        Image.fromarray(shrunk(drawing)).save(folder / f"small_{number:03d}.png")
        Image.fromarray(render(row, seed + number)[:, :HALF]).save(folder / f"left_{number:03d}.png")
    for side in SIDES:
        Image.fromarray(half_mask(side)).save(folder / f"mask_{side.split()[0]}.png")
    one_of_two = [recoloured(scene, rng, which=[1]) for scene in shown]
    wanted = {
        "image-to-image": one_of_two,
        "control": [recoloured(scene, rng, which=[0, 1]) for scene in shown],
        "super-resolution": shown,
        "inpainting": one_of_two,
        "outpainting": beside,
    }
    for mode, scenes in wanted.items():
        column = "control_image" if mode == "control" else "init_image"
        kind = {"super-resolution": "small", "outpainting": "left"}.get(mode, "pair")
        with (folder / f"{mode}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["prompt", column] + ["mask_image"] * (mode == "inpainting"), lineterminator="\n")
            writer.writeheader()
            for number, scene in enumerate(scenes):
                row = {"prompt": scene.caption(), column: f"{kind}_{number:03d}.png"}
                masked = {"mask_image": f"mask_{scene.relation.split()[0]}.png"} if mode == "inpainting" else {}
                writer.writerow(row | masked)
    return wanted


def half_mask(relation: str) -> NDArray[np.uint8]:
    """White over the half of a pair's drawing that the second object is in, uint8 (64, 64)."""
    mask = np.zeros((2 * HALF, 2 * HALF), np.uint8)
    mask[SIDES[relation]] = 255
    return mask


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
