"""Captions in COCO's format (https://cocodataset.org/#format-data): what image-captioning code and pycocotools read.

Captions only: where things are in an image is known to nobody, and a box around all of it would be no annotation.
"""

import json
import shutil
from pathlib import Path
from typing import TextIO

from jobs.export.base import Item, Outline


class CocoCaptions:
    """``train/8f0a….webp`` and ``annotations/captions_train.json``, whose ``images`` also have every column of ``metadata``."""

    def __init__(self, outline: Outline) -> None:
        self._folder = outline.folder
        (outline.folder / "annotations").mkdir()
        self._images: dict[str, TextIO] = {}
        self._captions: dict[str, TextIO] = {}  # beside the other, since a file has all images before the first caption
        self._count = dict.fromkeys(outline.splits, 0)
        for split in outline.splits:
            (outline.folder / split).mkdir()
            path = self._path(split)
            self._images[split] = path.open("w", encoding="utf-8", newline="\n")
            self._captions[split] = path.with_suffix(".captions").open("w+", encoding="utf-8", newline="\n")
            self._images[split].write('{"info": {"description": "Synthetic images, made with promptmill"},\n"licenses": [],\n"images": [')

    def add(self, item: Item) -> None:
        (self._folder / item.split / item.name).write_bytes(item.data)
        self._count[item.split] += 1
        number = self._count[item.split]
        separator = ",\n" if number > 1 else "\n"
        image = {"id": number, "file_name": item.name, **item.row}
        self._images[item.split].write(separator + json.dumps(image, allow_nan=False))
        caption = {"id": number, "image_id": number, "caption": item.caption}
        self._captions[item.split].write(separator + json.dumps(caption))

    def close(self) -> None:
        for split, images in self._images.items():
            with images, self._captions[split] as captions:
                images.write('],\n"annotations": [')
                captions.seek(0)
                shutil.copyfileobj(captions, images)
                images.write("]}\n")
            self._path(split).with_suffix(".captions").unlink()

    def _path(self, split: str) -> Path:
        return self._folder / "annotations" / f"captions_{split}.json"
