"""Writes labelled drawings: ``python -m pipeline.models.demo.write_drawings FOLDER --by shape --count 1000``.

FOLDER gets a folder per value. They are of the split that no model of the demo has learned from: the real images against which
generated ones are judged.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from pipeline.models.demo.grammar import KINDS, drawing
from pipeline.models.demo.render import render


def write_drawings(folder: Path, *, count: int, by: str = "shape", kind: str = "one") -> None:
    """Write ``count`` drawings of a kind, labelled by a column of their scenes."""
    for index in range(count):
        scene, seed = drawing("test", index, kind=kind)
        path = folder / scene.columns()[by] / f"{index:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(render(scene, seed)).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--by", choices=("shape", "colour", "size", "background"), default="shape")
    parser.add_argument("--kind", choices=KINDS, default="one")
    parser.add_argument("--count", type=int, default=1000)
    args = parser.parse_args()
    write_drawings(args.folder, count=args.count, by=args.by, kind=args.kind)


if __name__ == "__main__":
    main()
