"""Where the verdicts of a run stand: in its own metadata, or in ``judged/`` once ``promptmill filter`` has judged it again.

``metadata/`` is what the run wrote and never changes. Other rules write the whole metadata table anew, with their
verdicts, and then ``judged/judged.json``, which names the files: readers see the old verdicts or the new ones, never some of each.
A shard that was made since, or made again, keeps the verdicts of the run's own rules until the run has ended.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from jobs.run_dir import RunDir
from pipeline.store import Store
from schemas import layout
from schemas.errors import RunFolderError
from schemas.records import Marker


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """``judged/judged.json``. ``shards`` has the sha256 of each shard's metadata that was judged, ``tables`` that of each file,
    ``scorers`` the version of each scorer that was added to the run."""

    id: str
    filter: Mapping[str, Any]
    shards: Mapping[str, str]
    tables: Mapping[str, str]
    accepted: int
    rejected: int
    scorers: Mapping[str, str] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """As it stands in the file."""
        return json.dumps(asdict(self), indent=1).encode()

    def covers(self, marker: Marker) -> bool:
        """Whether a shard was judged as it is now."""
        return self.shards.get(str(marker.shard_id)) == marker.metadata_sha256


def read_judged(store: Store) -> Judged | None:
    """The rules that judge a run now, None for its own. Raises RunFolderError."""
    try:
        return Judged(**json.loads(store.get(layout.JUDGED_INDEX)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        raise RunFolderError(f"{store.root}/{layout.JUDGED_INDEX}: is damaged; delete it, and run 'promptmill filter' again") from None


def added_scorers(store: Store) -> dict[str, str]:
    """Versions of the scorers that ``promptmill rescore`` added, by name."""
    judged = read_judged(store)
    return dict(judged.scorers) if judged else {}


def metadata_sources(run: RunDir, markers: Sequence[Marker]) -> list[tuple[list[str], str, list[str]]]:
    """Files that hold the rows of committed shards: names, an SQL condition on their rows, the scorers that they have columns of."""
    judged, own = read_judged(run.store), list(run.job.scorers)
    if judged is None or not any(map(judged.covers, markers)):
        return [([layout.metadata_file(marker.shard_id) for marker in markers], "true", own)]
    covered = [marker.shard_id for marker in markers if judged.covers(marker)]
    whole = len(covered) == len(judged.shards)
    where = "true" if whole else f"shard_id in ({', '.join(map(str, covered))})"
    newer = [layout.metadata_file(marker.shard_id) for marker in markers if not judged.covers(marker)]
    return [(list(judged.tables), where, [*own, *judged.scorers]), *([(newer, "true", own)] if newer else [])]
