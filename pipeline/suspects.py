"""Which draws a worker's process died over: a note in the run folder that outlives the process.

A shard whose worker died is made again carefully: before each call of the model the draws in it are noted, and what
is finished is put aside after it. If the process dies again, the noted draws are suspect and go in groups of half
the size, until the one that kills stands alone; after ``DEATHS`` deaths by itself it is a failed draw. The others keep
their images. A process that dies for another reason costs its group a few smaller calls and nothing else.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

from pipeline.store import Store
from schemas import layout
from schemas.records import Draw

DEATHS = 3


@dataclass(slots=True)
class Suspects:
    """The note of one shard. ``limits`` holds the largest group that a draw may still be tried in, by sample id."""

    draws_sha256: str
    limits: dict[str, int] = field(default_factory=dict)
    deaths: dict[str, int] = field(default_factory=dict)
    trying: list[str] = field(default_factory=list)

    def is_condemned(self, draw: Draw) -> bool:
        """Whether the draw killed the process often enough to be a failure."""
        return self.deaths.get(draw.sample_id, 0) >= DEATHS

    def groups(self, draws: Sequence[Draw]) -> Iterator[list[Draw]]:
        """The draws in order, in groups that are small enough for each of their members."""
        group: list[Draw] = []
        for draw in draws:
            if group and len(group) >= min(self.limits.get(one.sample_id, len(draws)) for one in (*group, draw)):
                yield group
                group = []
            group.append(draw)
        if group:
            yield group


def load(store: Store, shard_id: int, draws_sha256: str) -> Suspects:
    """The note of a shard; if its last process died in a call of the model, that call's draws are suspect now."""
    try:
        note = Suspects(**json.loads(store.get(layout.suspects_file(shard_id))))
    except (FileNotFoundError, ValueError, TypeError):
        note = Suspects(draws_sha256)
    if note.draws_sha256 != draws_sha256:
        return Suspects(draws_sha256)
    size = len(note.trying)
    for sample_id in note.trying:
        note.limits[sample_id] = max(1, size // 2)
        if size == 1:
            note.deaths[sample_id] = note.deaths.get(sample_id, 0) + 1
    note.trying = []
    return note


def save(store: Store, shard_id: int, note: Suspects, trying: Sequence[Draw] = ()) -> None:
    """Note the draws that are about to be tried."""
    note.trying = [draw.sample_id for draw in trying]
    store.put(layout.suspects_file(shard_id), json.dumps(asdict(note), indent=1).encode())
