"""The seam between the export and its formats."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from schemas.prompt_weights import words


@dataclass(frozen=True, slots=True)
class Start:
    """Where a split goes on: how many parts of it are finished, and how many images are in them."""

    parts: int = 0
    images: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """What a format has to know before the first image.

    ``classes`` are all labels, sorted. ``schema`` has the columns of an item's ``row``: those of ``metadata`` with
    ``tags`` taken apart into ``tags.NAME``. ``shard_bytes`` is about the size of a file that holds many images.
    ``start`` tells by split what is finished from an export that was killed; the images in that are not given again.
    """

    folder: Path
    splits: Sequence[str]
    start: Mapping[str, Start]
    classes: Sequence[str]
    schema: pa.Schema
    shard_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One image: ``data`` as it was encoded once, ``row`` in JSON values, ``name`` a file name that is safe anywhere."""

    split: str
    name: str
    data: bytes
    label: str | None
    row: dict[str, Any]

    @property
    def caption(self) -> str:
        """The prompt, without weights."""
        return words(self.row["prompt"]) if self.row["prompt_weighting"] else self.row["prompt"]


class Writer(Protocol):
    """One format. Items of a split come in a fixed order; equal items give equal bytes, in equal parts."""

    def add(self, item: Item) -> Sequence[Path]:
        """Write one image. Files of the part of its split that it has finished, closed and not touched again; mostly none."""
        ...

    def close(self) -> None:
        """Finish all files."""
        ...


Format = Callable[[Outline], Writer]
