"""Writes a prompt file of the demo's grammar: ``python -m pipeline.models.demo.write_prompts FILE.csv --count 125``.

Each row carries the scene's structure as columns, which the metadata table keeps as tags.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from pipeline.models.demo.grammar import sample_scenes


def write_prompts(path: Path, *, count: int, seed: int) -> None:
    """Write ``count`` prompts, the kinds in turn; the label is the shape of the (first) object."""
    scenes = sample_scenes(count, seed=seed)
    columns = list(scenes[0].columns())
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "prompt", "label", *columns])
        for number, scene in enumerate(scenes):
            writer.writerow([f"{scene.kind}-{number:05d}", scene.caption(), scene.objects[0].shape, *scene.columns().values()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--count", type=int, default=125)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_prompts(args.file, count=args.count, seed=args.seed)


if __name__ == "__main__":
    main()
