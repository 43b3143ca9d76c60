"""Captions in COCO's format (https://cocodataset.org/#format-data): what image-captioning code and pycocotools read.

Captions only: where things are in an image is known to nobody, and a box around all of it would be no annotation.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from jobs.export.base import Item, Outline
from jobs.export.stretches import Stretches


class CocoCaptions:
    """``train/8f0a….webp`` and ``annotations/captions_train.json``, whose ``images`` also have every column of ``metadata``."""

    def __init__(self, outline: Outline) -> None:
        self._outline = outline
        for split in (*outline.splits, "annotations"):
            (outline.folder / split).mkdir(exist_ok=True)
        # apart, since a file has all images before the first caption
        self._texts = Stretches(outline.folder, ["images", "captions"], outline.start, stretch_bytes=outline.shard_bytes)

    def add(self, item: Item) -> Sequence[Path]:
        path = self._outline.folder / item.split / item.name
        path.write_bytes(item.data)
        number = self._texts.number(item.split)
        separator = ",\n" if number > 1 else "\n"
        image = {"id": number, "file_name": item.name, **item.row}
        caption = {"id": number, "image_id": number, "caption": item.row["prompt"]}
        texts = (separator + json.dumps(image, allow_nan=False), separator + json.dumps(caption))
        return self._texts.add(item.split, path, len(item.data), *texts)

    def close(self) -> None:
        for split in self._outline.splits:
            path = self._outline.folder / "annotations" / f"captions_{split}.json"
            with path.open("w", encoding="utf-8", newline="\n") as file:
                file.write('{"info": {"description": "Synthetic images, made with promptmill"},\n"licenses": [],\n"images": [')
                self._texts.join(split, "images", file)
                file.write('],\n"annotations": [')
                self._texts.join(split, "captions", file)
                file.write("]}\n")
