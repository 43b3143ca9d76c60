"""The batches of a shard that are not begun, some of which idle workers may make, so that all workers of a run end at about the same time.

The shard stays its own worker's, which commits what all have made: an image does not depend on the place where its batch is made.
"""

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from schemas.records import Draw, Outcome

Batch = Sequence[Draw]


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What a helper made of a loan: outcomes, the seconds of its stages, and what its model used."""

    outcomes: tuple[Outcome, ...]
    seconds: Mapping[str, float]
    usage: Mapping[str, float]


class Batches:
    """Taken from the front by the worker that has the shard, lent from the end. May be used from several threads."""

    def __init__(self, shard_id: int) -> None:
        self.shard_id = shard_id
        self._left: deque[Batch] = deque()
        self._lent: dict[int, list[Batch]] = {}
        self._made: list[Made] = []
        self._begun = self._in_hand = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        """How many are neither begun nor lent."""
        return len(self._left)

    @property
    def are_open(self) -> bool:
        """Whether there is something to take or to collect."""
        return bool(self._left or self._lent or self._made)

    @property
    def are_sampled(self) -> bool:
        """Whether the device has nothing to do for the shard any more, unless a loan comes back unmade."""
        return self._begun and not self._left and not self._in_hand

    def fill(self, batches: Sequence[Batch]) -> None:
        """Begin with these."""
        with self._changed:
            self._left.extend(batches)
            self._begun = True

    def take(self) -> Batch | None:
        """The next one, once the one before is sampled; None if there is none."""
        with self._changed:
            self._in_hand = bool(self._left)
            return self._left.popleft() if self._left else None

    def lend(self, loan: int, most: int) -> list[Draw]:
        """The draws of at most so many batches for a helper, by a number of the lender's. ``collect`` waits until it comes back."""
        with self._changed:
            batches = [self._left.pop() for _ in range(min(most, len(self._left)))]
            if batches:
                self._lent[loan] = batches
            return [draw for batch in batches for draw in batch]

    def take_back(self, loan: int, made: Made | None) -> None:
        """What a helper made of a loan, if anything; the rest is to be made here. A loan comes back once."""
        with self._changed:
            batches = self._lent.pop(loan, [])
            done: set[str] = set()
            if made and batches:
                self._made.append(made)
                done = {outcome.draw.sample_id for outcome in made.outcomes}
            rest = [[draw for draw in batch if draw.sample_id not in done] for batch in batches]
            self._left.extend(batch for batch in rest if batch)
            self._changed.notify_all()

    def collect(self) -> list[Made]:
        """What helpers have made, once every loan has come back."""
        with self._changed:
            self._changed.wait_for(lambda: not self._lent)
            made, self._made = self._made, []
            return made
