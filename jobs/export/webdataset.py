"""Tar files that the webdataset library streams: per image ``KEY.webp``, ``KEY.txt`` (prompt), ``KEY.json`` (row), ``KEY.cls``."""

import io
import json
import tarfile

from jobs.export.base import Item, Outline


class WebDataset:
    """``train-000000.tar`` and so on; ``classes.json`` lists the labels that the numbers in ``.cls`` stand for."""

    def __init__(self, outline: Outline) -> None:
        self._outline = outline
        self._numbers = {label: number for number, label in enumerate(outline.classes)}
        self._open: dict[str, tarfile.TarFile] = {}
        self._count = dict.fromkeys(outline.splits, 0)
        (outline.folder / "classes.json").write_text(json.dumps(list(outline.classes), indent=1) + "\n")
        for split in outline.splits:
            self._begin(split)

    def add(self, item: Item) -> None:
        tar = self._open[item.split]
        key, _, extension = item.name.partition(".")
        parts = {extension: item.data, "txt": item.caption.encode(), "json": json.dumps(item.row, allow_nan=False).encode()}
        if item.label is not None:
            parts["cls"] = str(self._numbers[item.label]).encode()
        for ending, data in parts.items():
            info = tarfile.TarInfo(f"{key}.{ending}")
            info.size, info.mode = len(data), 0o644
            tar.addfile(info, io.BytesIO(data))
        if tar.offset >= self._outline.shard_bytes:
            tar.close()
            self._begin(item.split)

    def close(self) -> None:
        for tar in self._open.values():
            tar.close()

    def _begin(self, split: str) -> None:
        path = self._outline.folder / f"{split}-{self._count[split]:06d}.tar"
        self._open[split] = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed in close()
        self._count[split] += 1
