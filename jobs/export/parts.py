"""What of an export is finished, so that a killed one goes on: a journal in its hidden folder, one line for each part.

A split is written in parts, a tar or Parquet file or a stretch of image files. A line names the files of a part with their sha256, and the
last image that is in it; images of a split come in a fixed order, so everything before it is in this part or an earlier one. Nothing is
believed that the files do not bear out, and all is begun anew for another export, or when the run has changed since.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from jobs.export.base import Item, Start

FOLDER = ".parts"  # of the export's; not published
JOURNAL = "journal.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A finished part: sha256 of its files by their names, images by label.

    ``of_shard`` are the sample ids of the run's shard ``shard_id`` that are in this part or an earlier one; those of lower
    shards all are. ``examples`` are prompts of the export so far.
    """

    split: str
    files: dict[str, str]
    labels: list[tuple[str | None, int]]
    num_bytes: int
    shard_id: int
    of_shard: list[str]
    examples: list[str]

    @property
    def images(self) -> int:
        """How many are in it."""
        return sum(count for _, count in self.labels)


class Parts:
    """The finished parts of an export, and the images of those that are not finished yet."""

    def __init__(self, folder: Path, identity: str, splits: Sequence[str]) -> None:
        """``identity`` stands for all that decides the export. Clears away whatever in ``folder`` is no finished part of it."""
        self._folder, self._path = folder, folder / FOLDER / JOURNAL
        self.finished = _sound(folder, _read(self._path, identity))
        _clear(folder, {name for part in self.finished for name in part.files} | {f"{FOLDER}/{JOURNAL}"})
        self._path.parent.mkdir(exist_ok=True)
        lines = ({"export": identity}, *map(asdict, self.finished))
        self._path.with_suffix(".new").write_text("".join(json.dumps(line) + "\n" for line in lines))
        self._path.with_suffix(".new").replace(self._path)
        self._last = {part.split: part for part in self.finished}
        self._covered = {part.split: frozenset(part.of_shard) for part in self._last.values()}
        self._shard = {
            split: (self._last[split].shard_id, [*self._last[split].of_shard]) if split in self._last else (-1, []) for split in splits
        }
        self._labels: dict[str, Counter[str | None]] = {split: Counter() for split in splits}
        self._bytes = dict.fromkeys(splits, 0)

    def start(self, split: str) -> Start:
        """Where the writer goes on."""
        parts = [part for part in self.finished if part.split == split]
        return Start(parts=len(parts), images=sum(part.images for part in parts))

    @property
    def examples(self) -> list[str]:
        """The first prompts, as far as they were known when the last part was finished."""
        return list(self.finished[-1].examples) if self.finished else []

    def has(self, split: str, shard_id: int, sample_id: str) -> bool:
        """Whether an image is in a finished part."""
        last = self._last.get(split)
        return last is not None and (shard_id < last.shard_id or (shard_id == last.shard_id and sample_id in self._covered[split]))

    def add(self, item: Item, files: Iterable[Path], examples: Iterable[str]) -> None:
        """Note an image, and the files of the part that it has finished, if it has."""
        split, shard_id = item.split, item.row["shard_id"]
        if self._shard[split][0] != shard_id:
            self._shard[split] = (shard_id, [])
        self._shard[split][1].append(item.row["sample_id"])
        self._labels[split][item.label] += 1
        self._bytes[split] += len(item.data)
        digests = {path.relative_to(self._folder).as_posix(): _sha256(path) for path in files}
        if digests:
            part = Part(
                split=split,
                files=digests,
                labels=list(self._labels[split].items()),
                num_bytes=self._bytes[split],
                shard_id=shard_id,
                of_shard=self._shard[split][1],
                examples=list(examples),
            )
            with self._path.open("a") as journal:
                journal.write(json.dumps(asdict(part)) + "\n")
            self._labels[split], self._bytes[split] = Counter(), 0


def forget(folder: Path) -> None:
    """Take the journal away: the export is whole."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def _read(path: Path, identity: str) -> Iterator[Part]:
    """Lines of a journal up to one that is cut short; none of another export's."""
    with contextlib.suppress(OSError, ValueError, TypeError), path.open() as journal:
        if json.loads(next(journal, "null")) == {"export": identity}:
            for line in journal:
                yield Part(**json.loads(line))


def _sound(folder: Path, parts: Iterable[Part]) -> list[Part]:
    """Parts whose files are as they were written; no later one of a split where one is not."""
    sound: list[Part] = []
    broken: set[str] = set()
    for part in parts:
        if part.split not in broken and all(_holds(folder / name, sha256) for name, sha256 in part.files.items()):
            sound.append(part)
        else:
            broken.add(part.split)
    return sound


def _holds(path: Path, sha256: str) -> bool:
    for renamed in path.parent.glob(f"{path.stem}-of-*.parquet") if path.suffix == ".parquet" else ():
        os.rename(renamed, path)  # killed after the tables had their last names
    try:
        return not path.is_symlink() and _sha256(path) == sha256
    except OSError:
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _clear(folder: Path, kept: set[str]) -> None:
    """Remove every other file, and the folders that are then empty."""
    for root, folders, names in os.walk(folder, topdown=False):
        for name in names:
            path = Path(root, name)
            if path.relative_to(folder).as_posix() not in kept:
                path.unlink()
        for name in folders:
            path = Path(root, name)
            if path.is_symlink():
                path.unlink()
            else:
                with contextlib.suppress(OSError):
                    path.rmdir()
