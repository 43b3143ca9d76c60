"""Where the verdicts of a run stand: in its own metadata, or in ``judged/`` once ``promptmill filter`` has judged it again.

``metadata/`` is what the run wrote and never changes. Other rules write the whole metadata table anew, with their
verdicts, and then ``judged/judged.json``, which names the files: readers see the old verdicts or the new ones, never some of each.
A shard that was made since, or made again, keeps the verdicts of the run's own rules until the run has ended.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.store import Store
from schemas import layout
from schemas.errors import RunFolderError
from schemas.records import Marker


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """``judged/judged.json``. ``shards`` has the sha256 of each shard's metadata that was judged, ``tables`` that of each file."""

    id: str
    filter: Mapping[str, Any]
    shards: Mapping[str, str]
    tables: Mapping[str, str]
    accepted: int
    rejected: int

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


def metadata_sources(store: Store, markers: Sequence[Marker]) -> list[tuple[list[str], str]]:
    """Files that hold the rows of committed shards, each list with an SQL condition on them."""
    judged = read_judged(store)
    if judged is None or not any(map(judged.covers, markers)):
        return [([layout.metadata_file(marker.shard_id) for marker in markers], "true")]
    covered = [marker.shard_id for marker in markers if judged.covers(marker)]
    whole = len(covered) == len(judged.shards)
    found = [(list(judged.tables), "true" if whole else f"shard_id in ({', '.join(map(str, covered))})")]
    newer = [layout.metadata_file(marker.shard_id) for marker in markers if not judged.covers(marker)]
    return [*found, (newer, "true")] if newer else found
