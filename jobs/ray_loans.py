"""At the end of a run: actors that have nothing left to do make batches of the shards of others. See ``pipeline.lending``."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError

from jobs.executor import OnEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Loan:
    """A part of a shard of actor ``lender`` for actor ``helper``, by their numbers."""

    number: int
    lender: int
    helper: int


class Loans:
    """Each loan is three calls, one after the other: the lender gives, the helper makes, the lender takes back.

    The lender waits for it, so it is told too if the helper is lost. What was made goes from one to the other, not by the driver.
    """

    def __init__(self, actors: Sequence[Any], on_event: OnEvent) -> None:
        self._actors = actors  # the pool's own list, in which lost actors are replaced
        self._on_event = on_event
        self._numbers = count(1)
        self._asked: dict[Any, Loan] = {}
        self._helping: dict[Any, tuple[Loan, Any]] = {}  # with what will have been made
        self._returning: dict[Any, tuple[Loan, bool]] = {}
        self._have_none: set[int] = set()

    @property
    def calls(self) -> list[Any]:
        """All that are under way."""
        return [*self._asked, *self._helping, *self._returning]

    @property
    def helpers(self) -> set[int]:
        """Actors that have a loan, or may get one."""
        return {loan.helper for loan in self._asked.values()} | {loan.helper for loan, _ in self._helping.values()}

    def has_shard(self, number: int) -> None:
        """This actor has batches again."""
        self._have_none.discard(number)

    def ask(self, ready: set[int], busy: set[int]) -> None:
        """Ask those of the ready actors that may have batches left, in turn, for something to do for each one that has none."""
        lenders = sorted((busy | self.helpers) & ready - self._have_none)
        idle = sorted(ready - set(lenders) - self.helpers)
        for place, helper in enumerate(idle if lenders else ()):
            loan = Loan(number=next(self._numbers), lender=lenders[place % len(lenders)], helper=helper)
            rest_of_its = len(idle[place :: len(lenders)])
            self._asked[self._actors[loan.lender].lend.remote(loan.number, rest_of_its)] = loan

    def came(self, call: Any) -> tuple[int, RayError] | None:
        """One of ``calls`` has ended. The helper and why it failed, if it did."""
        if call in self._asked:
            self._lent(self._asked.pop(call), call)
        elif call in self._helping:
            loan, made = self._helping.pop(call)
            try:
                ray.get(call)
            except RayError as error:
                self._take_back(loan, None)
                return loan.helper, error
            self._take_back(loan, made)
        else:
            loan, was_made = self._returning.pop(call)
            try:
                ray.get(call)
            except RayError as error:  # what was made is lost, or the lender, which then needs nothing any more
                if was_made or isinstance(error, ActorUnavailableError):
                    self._take_back(loan, None)
        return None

    def _lent(self, loan: Loan, call: Any) -> None:
        try:
            lent = ray.get(call)
        except RayError:
            self._take_back(loan, None)  # it may have lent them all the same
            lent = None
        if lent is None:
            self._have_none.add(loan.lender)
            return
        shard_id, sample_ids = lent
        self._on_event("batches_lent", shard_id=shard_id, draws=len(sample_ids), actor=loan.lender, helper=loan.helper)
        self._have_none.discard(loan.helper)
        done, made = self._actors[loan.helper].help_with.options(num_returns=2).remote(shard_id, sample_ids)
        self._helping[done] = (loan, made)

    def _take_back(self, loan: Loan, made: Any) -> None:
        self._returning[self._actors[loan.lender].take_back.remote(loan.number, made)] = (loan, made is not None)
