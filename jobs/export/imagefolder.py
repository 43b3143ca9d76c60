"""Image files in a folder per split and class, with ``metadata.jsonl``: torchvision's ImageFolder and `datasets` read it."""

import json
from collections.abc import Sequence
from pathlib import Path

from jobs.export.base import Item, Outline
from jobs.export.paths import folder_name
from jobs.export.stretches import Stretches


class ImageFolder:
    """``train/star/8f0a….webp``; the first column of ``train/metadata.jsonl`` is the file's name relative to it."""

    def __init__(self, outline: Outline) -> None:
        self._outline = outline
        self._rows = Stretches(outline.folder, ["rows"], outline.start, stretch_bytes=outline.shard_bytes)

    def add(self, item: Item) -> Sequence[Path]:
        name = Path(folder_name(item.label), item.name)
        path = self._outline.folder / item.split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(item.data)
        row = {"file_name": name.as_posix(), **item.row}
        return self._rows.add(item.split, path, len(item.data), json.dumps(row, ensure_ascii=True, allow_nan=False) + "\n")

    def close(self) -> None:
        for split in self._outline.splits:
            folder = self._outline.folder / split
            folder.mkdir(exist_ok=True)
            with (folder / "metadata.jsonl").open("w", encoding="utf-8", newline="\n") as table:
                self._rows.join(split, "rows", table)
