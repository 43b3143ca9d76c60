"""``scores/`` against the markers of the run and the scorers that were added to it: files that fit nothing, that are damaged, or missing.

Scores of a scorer that was not added yet are those of a ``promptmill rescore`` that goes on or was stopped. While another command is at
work in the run, what does not fit yet and what is missing are let be.
"""

import re
from collections.abc import Callable, Iterator, Sequence

from jobs.added_scores import scores_schema
from jobs.judged import added_scorers
from jobs.lease import held
from jobs.run_dir import RunDir
from jobs.verify_kept import read_kept
from jobs.verify_rows import Problem
from schemas import layout
from schemas.errors import RunFolderError
from schemas.records import Marker

AGAIN = "run 'promptmill rescore' with that scorer again, it makes them"
_OURS = re.compile(re.escape(layout.scores_file(0, "NAME")).replace("00000", r"(\d{5,})").replace("NAME", "([^./]+)"))


def score_problems(
    run_dir: RunDir, names: Sequence[str], markers: Sequence[Marker], *, on_count: Callable[[str, int, int], None]
) -> Iterator[Problem]:
    """What is wrong with the files ``names``, which were listed before the markers were read."""
    done, busy = {marker.shard_id: marker for marker in markers}, held(run_dir.store)
    try:
        versions = added_scorers(run_dir.store)
    except RunFolderError:
        return  # told with the verdicts
    for number, name in enumerate(names, 1):
        ours = _OURS.fullmatch(name)
        if ours is None:
            yield Problem(file=name, what="is no file of a run", remedy="move it elsewhere")
        elif int(ours[1]) not in done:
            yield Problem(file=name, what="belongs to no committed shard", remedy="delete it")
        elif ours[2] in versions and (what := _wrong(run_dir, name, done[int(ours[1])], versions[ours[2]], busy)):
            yield Problem(file=name, what=what, remedy=AGAIN)
        on_count("files of scores", number, len(names))
    there = set(names)
    for scorer in versions if not busy else ():
        lacking = [marker.shard_id for marker in markers if layout.scores_file(marker.shard_id, scorer) not in there]
        if lacking:
            what = f"{len(lacking):,} of {len(markers):,} shards have no {scorer} scores, the first is {lacking[0]}"
            yield Problem(file=layout.SCORES, what=what, remedy=AGAIN)


def _wrong(run_dir: RunDir, name: str, marker: Marker, version: str, busy: bool) -> str | None:
    """The first thing that is wrong with a file of scores."""
    table = read_kept(run_dir, name, marker, scores_schema(), ordered=False)
    if table is None or isinstance(table, str):
        return table
    told = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    if told != {"images_sha256": marker.images_sha256, "version": version} and not busy:
        return "is of other images, or of another version of the scorer"
    return None
