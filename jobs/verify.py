"""``promptmill verify``: is a run's dataset whole, and what its markers, its plan and its own hashes say it is?

Reads shard by shard, one in memory at a time. It changes nothing; every problem names the file and the remedy.
A shard that is not made yet is no problem, so a run may be verified while it goes on.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from jobs.judged import read_judged
from jobs.run_dir import RunDir
from jobs.verify_embeddings import embedding_problems
from jobs.verify_rows import AGAIN, Problem, Remake, named, regenerated, spread
from jobs.verify_scores import score_problems
from jobs.verify_shard import check_shard
from schemas import layout
from schemas.errors import RunFolderError
from schemas.records import Marker, PlanIndex

__all__ = ["Problem", "Report", "verify", "verify_samples"]

FILE_OF = {
    layout.METADATA: layout.metadata_file,
    layout.IMAGES: layout.images_file,
    layout.FAILED: layout.failed_file,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was looked at and what is wrong. ``regenerated`` counts images that were made again and compared."""

    shards: int
    shards_planned: int
    draws: int
    images: int
    regenerated: int
    problems: tuple[Problem, ...] = ()

    @property
    def ok(self) -> bool:
        """No problem was found."""
        return not self.problems

    def summary(self) -> str:
        """One line for people."""
        seen = f"{self.shards:,} of {self.shards_planned:,} shards, {self.draws:,} draws, {self.images:,} images"
        again = f", {self.regenerated:,} images made again" if self.regenerated else ""
        found = f"{len(self.problems):,} problem{'s' if len(self.problems) > 1 else ''}" if self.problems else "no problem"
        return f"{found} in {seen}{again}"


def verify(
    run_dir: RunDir,
    *,
    regenerate: int = 0,
    remake: Remake | None = None,
    on_count: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Report:
    """Check every shard that has a marker, and look for files that belong to none.

    ``regenerate`` images, evenly spread over the dataset, are made again by ``remake(draws)`` and compared byte for
    byte. ``on_count(what, done, total)`` is told the progress. Raises RunFolderError if the run was never planned.
    """
    index = run_dir.plan
    names = {folder: run_dir.store.list(folder) for folder in FILE_OF}  # before the markers: a shard may be committed meanwhile
    features, scores = run_dir.store.list(layout.EMBEDDINGS), run_dir.store.list(layout.SCORES)
    tally = _Tally()
    markers = list(_usable_markers(run_dir, index, tally))
    with ThreadPoolExecutor(thread_name_prefix="verify") as pool:
        for done, marker in enumerate(markers, 1):
            found = check_shard(run_dir, marker, each=pool.map)
            tally.problems += found.problems
            tally.draws += found.draws
            tally.images += found.images
            tally.remember(marker.shard_id, found.sample_ids)
            on_count("shards", done, len(markers))
    tally.problems += tally.repeated()
    tally.problems += _strays(run_dir, index, names)
    tally.problems += _damaged_inputs(run_dir)
    tally.problems += _damaged_verdicts(run_dir)
    tally.problems += embedding_problems(run_dir, features, markers, on_count=on_count)
    tally.problems += score_problems(run_dir, scores, markers, on_count=on_count)
    again = 0
    if regenerate and remake:
        picked = list(spread(run_dir, markers, regenerate))
        again, differing = regenerated(picked, remake, on_count=lambda done: on_count("images made again", done, len(picked)))
        tally.problems += differing
    return Report(
        shards=len(markers),
        shards_planned=index.num_shards,
        draws=tally.draws,
        images=tally.images,
        regenerated=again,
        problems=tuple(tally.problems),
    )


def verify_samples(run_dir: RunDir, sample_ids: Sequence[str], remake: Remake) -> Report:
    """Make these images again and compare them byte for byte; nothing else is looked at.

    Raises RunFolderError for an id without an image.
    """
    picked = named(run_dir, sample_ids)
    again, differing = regenerated(picked, remake)
    return Report(
        shards=len({one.shard_id for one in picked}),
        shards_planned=run_dir.plan.num_shards,
        draws=len(picked),
        images=len(picked),
        regenerated=again,
        problems=tuple(differing),
    )


@dataclass(slots=True)
class _Tally:
    """What adds up over the shards. Sample ids are kept as 8 bytes each."""

    problems: list[Problem] = field(default_factory=list)
    draws: int = 0
    images: int = 0
    _ids: list[np.ndarray] = field(default_factory=list)
    _shards: list[np.ndarray] = field(default_factory=list)

    def remember(self, shard_id: int, sample_ids: Sequence[str]) -> None:
        """Note the ids of a shard."""
        self._ids.append(np.array([int(name[:16], 16) for name in sample_ids], dtype=np.uint64))
        self._shards.append(np.full(len(sample_ids), shard_id, dtype=np.int64))

    def repeated(self) -> Iterator[Problem]:
        """A problem for each pair of shards that share sample ids."""
        if not self._ids:
            return
        ids, shards = np.concatenate(self._ids), np.concatenate(self._shards)
        order = np.argsort(ids, kind="stable")
        same = np.flatnonzero(ids[order][1:] == ids[order][:-1])
        pairs = {(int(shards[order[at]]), int(shards[order[at + 1]])): int(ids[order[at]]) for at in same}
        for (first, second), number in sorted(pairs.items()):
            yield Problem(
                file=layout.metadata_file(second),
                what=f"sample id {number:016x}… stands in shard {first} too",
                remedy="the prompt source repeats a prompt id; give each prompt its own and make a new run",
            )


def _usable_markers(run_dir: RunDir, index: PlanIndex, tally: _Tally) -> Iterator[Marker]:
    for name in run_dir.store.list(layout.DONE):
        marker = run_dir.marker(name)
        if marker is None:
            tally.problems.append(Problem(file=name, what="is not a readable commit marker", remedy=AGAIN.format(marker=name)))
        elif marker.shard_id >= index.num_shards:
            what = f"the plan has {index.num_shards} shards, from 0"
            tally.problems.append(Problem(file=name, what=what, remedy="delete it, with its files in metadata, images and failed"))
        elif marker.draws_sha256 != index.shards[marker.shard_id]:
            what = f"belongs to draws {marker.draws_sha256}, the plan has {index.shards[marker.shard_id]}"
            tally.problems.append(Problem(file=name, what=what, remedy=AGAIN.format(marker=name)))
        else:
            yield marker


def _damaged_inputs(run_dir: RunDir) -> Iterator[Problem]:
    """Input images whose bytes are not those that they are named after."""
    for name in run_dir.store.list(layout.INPUTS):
        found = hashlib.sha256(run_dir.store.get(name)).hexdigest()
        if layout.input_file(found) != name:
            remedy = f"delete it and {layout.PLAN_INDEX} and run the same command again, it is copied anew"
            yield Problem(file=name, what=f"its bytes have sha256 {found[:16]}…", remedy=remedy)


def _damaged_verdicts(run_dir: RunDir) -> Iterator[Problem]:
    """Tables of ``promptmill filter`` that are not as they were written."""
    remedy = f"delete {layout.JUDGED_INDEX}, and run 'promptmill filter' again"
    try:
        judged = read_judged(run_dir.store)
    except RunFolderError:
        yield Problem(file=layout.JUDGED_INDEX, what="is damaged", remedy=remedy)
        return
    for name, sha256 in (judged.tables if judged else {}).items():
        try:
            found = hashlib.sha256(run_dir.store.get(name)).hexdigest()
        except FileNotFoundError:
            yield Problem(file=name, what="is missing", remedy=remedy)
            continue
        if found != sha256:
            yield Problem(file=name, what=f"has sha256 {found[:16]}…, written was {sha256[:16]}…", remedy=remedy)


def _strays(run_dir: RunDir, index: PlanIndex, names: dict[str, list[str]]) -> Iterator[Problem]:
    """Files that no marker stands for. Readers of ``*.parquet`` would take them for data."""
    done = set(run_dir.store.list(layout.DONE))
    for folder, found in names.items():
        for name in found:
            shard_id = layout.shard_of(name)
            if shard_id is None or name != FILE_OF[folder](shard_id):
                yield Problem(file=name, what="is no file of a run", remedy="move it elsewhere")
            elif layout.done_file(shard_id) not in done:
                planned = shard_id < index.num_shards
                remedy = "run the same command again, it finishes the shard" if planned else "delete it"
                yield Problem(file=name, what="has no commit marker" if planned else "belongs to no shard of the plan", remedy=remedy)
