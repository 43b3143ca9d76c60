"""Text files that grow with the images of a split, such as ``metadata.jsonl``, written in stretches that stay when the export is killed."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from jobs.export.base import Start
from jobs.export.parts import FOLDER

STRETCH_BYTES = 50_000_000  # of images: so much is made again after a kill, at the most


class Stretches:
    """For each split and kind of text the stretches ``SPLIT-KIND-00000`` and so on; ``join`` makes one text of them."""

    def __init__(self, folder: Path, kinds: Sequence[str], start: Mapping[str, Start], *, stretch_bytes: int) -> None:
        """``stretch_bytes`` of images end a stretch, if that is not more than ``STRETCH_BYTES``."""
        self._folder, self._kinds, self._most = folder, kinds, min(stretch_bytes, STRETCH_BYTES)
        self._number = {split: begun.parts for split, begun in start.items()}
        self._count = {split: begun.images for split, begun in start.items()}
        self._open: dict[tuple[str, str], TextIO] = {}
        self._bytes = dict.fromkeys(start, 0)
        self._images: dict[str, list[Path]] = {split: [] for split in start}
        for split in start:
            self._begin(split)

    def number(self, split: str) -> int:
        """Images of a split so far, this one counted."""
        return self._count[split] + 1

    def add(self, split: str, image: Path, num_bytes: int, *texts: str) -> Sequence[Path]:
        """A text of each kind for an image that is written; the files of the stretch that it ends, images and texts."""
        for kind, text in zip(self._kinds, texts, strict=True):
            self._open[split, kind].write(text)
        self._count[split] += 1
        self._bytes[split] += num_bytes
        self._images[split].append(image)
        if self._bytes[split] < self._most:
            return ()
        finished = [*self._images[split], *(self._path(split, kind, self._number[split]) for kind in self._kinds)]
        self._end(split)
        self._number[split] += 1
        self._begin(split)
        return finished

    def join(self, split: str, kind: str, sink: TextIO) -> None:
        """Append a text, as far as it has come. No image may be added after it."""
        self._open[split, kind].close()
        for number in range(self._number[split] + 1):
            with self._path(split, kind, number).open(encoding="utf-8", newline="\n") as text:
                shutil.copyfileobj(text, sink)

    def _begin(self, split: str) -> None:
        self._bytes[split], self._images[split] = 0, []
        for kind in self._kinds:
            self._open[split, kind] = self._path(split, kind, self._number[split]).open("w", encoding="utf-8", newline="\n")

    def _end(self, split: str) -> None:
        for kind in self._kinds:
            self._open[split, kind].close()

    def _path(self, split: str, kind: str, number: int) -> Path:
        return self._folder / FOLDER / f"{split}-{kind}-{number:05d}"
