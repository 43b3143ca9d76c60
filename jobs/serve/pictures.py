"""Single images of a run: as they were made, small, and those that conditioned them.

Images lie in row groups of a hundred or so. The group that was read last is kept for a few shards, since the images of a page, which
a browser asks for one by one, are often neighbours.
"""

import hashlib
import io
import threading
from collections.abc import Callable
from typing import Any

import pyarrow as pa
from PIL import Image, ImageOps

from jobs.run_dir import RunDir, damaged
from jobs.selection import image_table
from pipeline.inputs import FORMATS
from schemas import layout
from schemas.records import Marker

SLOTS = 6  # shards of which a row group, 100 MB at the most, is kept
SMALL_PX = 384
INPUT_PX = 768


class Pictures:
    """Encoded images, each checked against its sha256."""

    def __init__(self, run: RunDir, marker: Callable[[int], Marker | None]) -> None:
        """``marker`` gives the commit marker of a shard, None for one whose images are not shown."""
        self._run, self._marker = run, marker
        self._slots = [_Slot() for _ in range(SLOTS)]

    @property
    def format(self) -> str:
        """Of the images as they were made: webp, png or jpeg."""
        return self._run.job.config.output.image_format

    def original(self, shard_id: int, sample_id: str) -> bytes:
        """As it was made. Raises KeyError if there is no such image, RunFolderError if it is damaged."""
        marker = self._marker(shard_id)
        if marker is None:
            raise KeyError(sample_id)
        name = layout.images_file(shard_id)
        try:
            data, sha256 = self._slots[shard_id % SLOTS].get(self._run, name, marker.images_sha256, sample_id)
        except (OSError, pa.ArrowException) as error:
            raise damaged(self._run, name, error) from None
        if hashlib.sha256(data).hexdigest() != sha256:
            raise damaged(self._run, name, f"image {sample_id} is not the one that was made: its sha256 differs")
        return data

    def small(self, shard_id: int, sample_id: str) -> tuple[bytes, str]:
        """For a gallery, and its format: the original if that is small. Raises as ``original``."""
        data = self.original(shard_id, sample_id)
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                if max(picture.size) <= SMALL_PX:
                    return data, self.format
                return _webp(picture, SMALL_PX), "webp"
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            name = layout.images_file(shard_id)
            raise damaged(self._run, name, f"image {sample_id} cannot be decoded ({type(error).__name__})") from None

    def conditioning(self, sha256: str) -> bytes:
        """An input image, small and as WebP: its own bytes are anybody's. Raises KeyError."""
        try:
            with Image.open(io.BytesIO(self._run.store.get(layout.input_file(sha256))), formats=FORMATS) as picture:
                return _webp(ImageOps.exif_transpose(picture), INPUT_PX)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            raise KeyError(sha256) from None


class _Slot:
    """One row group of one shard's images; one thread at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: tuple[str, str] | None = None
        self._parts: list[Any] = []
        self._group_of: dict[str, int] = {}
        self._group: int | None = None
        self._images: dict[str, tuple[pa.Scalar, str]] = {}

    def get(self, run: RunDir, name: str, version: str, sample_id: str) -> tuple[bytes, str]:
        """Bytes of an image and the sha256 that its row says. Raises KeyError, and what Arrow raises."""
        with self._lock:
            if self._key != (name, version):
                self._key, self._group = None, None
                self._parts = [part for whole in image_table(run, name).get_fragments() for part in whole.split_by_row_group()]
                ids = [part.to_table(columns=["sample_id"])["sample_id"].to_pylist() for part in self._parts]
                self._group_of = {one: number for number, some in enumerate(ids) for one in some}
                self._key = (name, version)
            group = self._group_of[sample_id]
            if group != self._group:
                self._group, self._images = None, {}
                table = self._parts[group].to_table(columns=["sample_id", "image", "sha256"])
                names, hashes = table["sample_id"].to_pylist(), table["sha256"].to_pylist()
                self._images = {one: (table["image"][at], sha256) for at, (one, sha256) in enumerate(zip(names, hashes, strict=True))}
                self._group = group
            image, sha256 = self._images[sample_id]
            return image.as_py()["bytes"], sha256


def _webp(picture: Image.Image, size_px: int) -> bytes:
    picture.draft("RGB", (size_px, size_px))  # a JPEG is decoded no larger than is needed
    small = picture.convert("RGB")
    small.thumbnail((size_px, size_px), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "webp", quality=85)
    return buffer.getvalue()
