"""Tar files that the webdataset library streams: per image ``KEY.webp``, ``KEY.txt`` (prompt), ``KEY.json`` (row), ``KEY.cls``."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

from jobs.export.base import Item, Outline


class WebDataset:
    """``train-000000.tar`` and so on; ``classes.json`` lists the labels that the numbers in ``.cls`` stand for."""

    def __init__(self, outline: Outline) -> None:
        self._outline = outline
        self._numbers = {label: number for number, label in enumerate(outline.classes)}
        self._open: dict[str, tarfile.TarFile] = {}
        self._count = {split: outline.start[split].parts for split in outline.splits}
        (outline.folder / "classes.json").write_text(json.dumps(list(outline.classes), indent=1) + "\n")
        for split in outline.splits:
            self._begin(split)

    def add(self, item: Item) -> Sequence[Path]:
        tar = self._open[item.split]
        key, _, extension = item.name.partition(".")
        parts = {extension: item.data, "txt": item.caption.encode(), "json": json.dumps(item.row, allow_nan=False).encode()}
        if item.label is not None:
            parts["cls"] = str(self._numbers[item.label]).encode()
        for ending, data in parts.items():
            info = tarfile.TarInfo(f"{key}.{ending}")
            info.size, info.mode = len(data), 0o644
            tar.addfile(info, io.BytesIO(data))
        if tar.offset < self._outline.shard_bytes:
            return ()
        tar.close()
        finished = self._path(item.split)
        self._count[item.split] += 1
        self._begin(item.split)
        return (finished,)

    def close(self) -> None:
        for tar in self._open.values():
            tar.close()

    def _begin(self, split: str) -> None:
        self._open[split] = tarfile.open(self._path(split), "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed in close()

    def _path(self, split: str) -> Path:
        return self._outline.folder / f"{split}-{self._count[split]:06d}.tar"
