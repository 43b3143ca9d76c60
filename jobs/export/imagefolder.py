"""Image files in a folder per split and class, with ``metadata.jsonl``: torchvision's ImageFolder and `datasets` read it."""

import json
from pathlib import Path

from jobs.export.base import Item, Outline
from jobs.export.paths import folder_name


class ImageFolder:
    """``train/star/8f0a….webp``; the first column of ``train/metadata.jsonl`` is the file's name relative to it."""

    def __init__(self, outline: Outline) -> None:
        self._folder = outline.folder
        self._tables = {}
        for split in outline.splits:
            (outline.folder / split).mkdir()
            self._tables[split] = (outline.folder / split / "metadata.jsonl").open("w", encoding="utf-8", newline="\n")

    def add(self, item: Item) -> None:
        name = Path(folder_name(item.label), item.name)
        path = self._folder / item.split / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(item.data)
        row = {"file_name": name.as_posix(), **item.row}
        self._tables[item.split].write(json.dumps(row, ensure_ascii=True, allow_nan=False) + "\n")

    def close(self) -> None:
        for table in self._tables.values():
            table.close()
