"""Single images of a run: is one what its row says, and does it come out the same when it is made again?"""

import hashlib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from jobs.query import query
from jobs.run_dir import RunDir
from schemas import layout
from schemas.errors import RunFolderError
from schemas.records import Draw, Marker, Outcome
from schemas.tables import draw_from_row

AGAIN = "delete {marker} and run the same command again"
REMAKE_AT_ONCE = 64  # images that are made again before they are compared; bounds memory

SAMPLE_ID = "[0-9a-f]{20}"
_LISTED = "'promptmill query {root} \"select sample_id, prompt from metadata\"' lists them"

Remake = Callable[[Sequence[Draw]], Sequence[Outcome]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong: the file (relative to the run folder), what was found, what to do."""

    file: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}; {self.remedy}"


def image_problem(image: dict[str, Any], row: dict[str, Any]) -> str | None:
    """What is wrong with a row of the image table, given its row of the metadata table."""
    sample_id, data = row["sample_id"], image["image"]["bytes"]
    if image["text"] != draw_from_row(row).words:
        return f"text of {sample_id} is not its prompt"
    found = hashlib.sha256(data).hexdigest()
    if not found == image["sha256"] == row["image_sha256"]:
        return f"image {sample_id} has sha256 {found[:16]}…, its rows say {image['sha256'][:16]}… and {row['image_sha256'][:16]}…"
    if len(data) != row["num_bytes"]:
        return f"image {sample_id} has {len(data)} bytes, its row says {row['num_bytes']}"
    return _picture_problem(data, row)


def _picture_problem(data: bytes, row: dict[str, Any]) -> str | None:
    """The header is compared before pixels are decoded."""
    sample_id, said = row["sample_id"], (row["format"], row["width"], row["height"])
    try:
        with Image.open(io.BytesIO(data)) as picture:
            found = ((picture.format or "").lower(), *picture.size)
            if found != said:
                return f"image {sample_id} is {_shape(*found)}, its row says {_shape(*said)}"
            picture.load()
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"image {sample_id} cannot be decoded ({type(error).__name__})"
    return None


def _shape(kind: str, width: int, height: int) -> str:
    return f"{kind} of {width} x {height} px"


def regenerated(
    picked: Iterable["Picked"], remake: Remake, *, on_count: Callable[[int], None] = lambda done: None
) -> tuple[int, list[Problem]]:
    """Make images again; how many were compared, and which differ."""
    compared, problems, waiting = 0, [], []
    for one in picked:
        waiting.append(one)
        if len(waiting) == REMAKE_AT_ONCE:
            problems += _differing(waiting, remake)
            compared += len(waiting)
            waiting = []
            on_count(compared)
    problems += _differing(waiting, remake) if waiting else []
    return compared + len(waiting), problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Picked:
    """A draw to make again, and what its row says of the image."""

    shard_id: int
    draw: Draw
    image_sha256: str
    batch_shape: str


def named(run_dir: RunDir, sample_ids: Iterable[str]) -> list[Picked]:
    """Images by their sample ids. Raises RunFolderError for an id without an image."""
    root, wanted = run_dir.store.root, list(dict.fromkeys(sample_ids))
    for sample_id in wanted:
        if not re.fullmatch(SAMPLE_ID, sample_id):
            raise RunFolderError(f"--sample {sample_id!r}: is no sample id; {_LISTED.format(root=root)}")
    ids = ", ".join(f"'{sample_id}'" for sample_id in wanted)
    sql = f"select sample_id, shard_id, image_sha256, batch_shape, reason from metadata where sample_id in ({ids})"  # noqa: S608
    rows = {row["sample_id"]: row for row in query([root], sql).to_pylist()}
    return [_named(run_dir, sample_id, rows.get(sample_id)) for sample_id in wanted]


def _named(run_dir: RunDir, sample_id: str, row: dict[str, Any] | None) -> Picked:
    root = run_dir.store.root
    if row is None:
        raise RunFolderError(f"--sample {sample_id}: {root} has no such draw; {_LISTED.format(root=root)}")
    if row["image_sha256"] is None:
        raise RunFolderError(
            f"--sample {sample_id}: failed ({row['reason']}); 'promptmill run CONFIG --retry-failed' makes failed draws again"
        )
    for draw in run_dir.read_shard(row["shard_id"]).draws:
        if draw.sample_id == sample_id:
            return Picked(shard_id=row["shard_id"], draw=draw, image_sha256=row["image_sha256"], batch_shape=row["batch_shape"])
    raise RunFolderError(f"--sample {sample_id}: is not in the plan of {root}; 'promptmill verify {root}' tells what to do")


def spread(run_dir: RunDir, markers: Sequence[Marker], count: int) -> Iterator[Picked]:
    """Up to ``count`` images at even distances. Shards that cannot be read are passed over: they are problems already."""
    total = sum(marker.accepted + marker.rejected for marker in markers)
    count = min(count, total)
    wanted = [(2 * number + 1) * total // (2 * count) for number in range(count)]
    before = 0
    for marker in markers:
        made = marker.accepted + marker.rejected
        here = [at - before for at in wanted if before <= at < before + made]
        before += made
        yield from _rows_of(run_dir, marker.shard_id, here) if here else ()


def _rows_of(run_dir: RunDir, shard_id: int, positions: Sequence[int]) -> Iterator[Picked]:
    """The images of a shard at these positions among those that it has."""
    columns = ["sample_id", "image_sha256", "batch_shape"]
    try:
        table = pq.read_table(pa.BufferReader(run_dir.store.get(layout.metadata_file(shard_id))), columns=columns)
        draws = {draw.sample_id: draw for draw in run_dir.read_shard(shard_id).draws}
    except (OSError, pa.ArrowException, RunFolderError):
        return
    made = [row for row in table.to_pylist() if row["image_sha256"] is not None and row["sample_id"] in draws]
    for row in (made[at] for at in positions if at < len(made)):
        yield Picked(shard_id=shard_id, draw=draws[row["sample_id"]], image_sha256=row["image_sha256"], batch_shape=row["batch_shape"])


def _differing(picked: Sequence[Picked], remake: Remake) -> Iterator[Problem]:
    for one, outcome in zip(picked, remake([one.draw for one in picked]), strict=True):
        if outcome.image_sha256 == one.image_sha256:
            continue
        name = one.draw.sample_id
        if outcome.image is None:
            yield _problem(one, f"image {name} cannot be made again: {' '.join((outcome.error or 'no reason given').split())}")
        elif outcome.batch_shape != one.batch_shape:
            yield _problem(one, f"image {name} was made in a batch of {one.batch_shape}, and differs in one of {outcome.batch_shape}")
        else:
            yield _problem(one, f"image {name} comes out differently")


def _problem(one: Picked, what: str) -> Problem:
    remedy = "compare device and versions with those in job.yaml; if they are the same, " + AGAIN
    return Problem(file=layout.images_file(one.shard_id), what=what, remedy=remedy.format(marker=layout.done_file(one.shard_id)))
