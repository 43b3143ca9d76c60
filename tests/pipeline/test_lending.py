"""Two workers make one shard: its bytes are those of one worker alone, whatever becomes of the loan."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.lending import Batches, Made
from pipeline.shard import Stages, help_with, run_shard
from schemas import layout
from tests.fakes import FakeModel
from tests.pipeline.test_shard import GOOD, files, never, stages

LOAN, IDS = 1, [draw.sample_id for draw in GOOD.draws]  # of 10 draws in batches of 4, 4 and 2


class Counting(FakeModel):
    """It tells of usage, as the model of an endpoint does."""

    def take_usage(self) -> dict[str, float]:
        return {"requests": 1.0}


def counting(folder: Path) -> Stages:
    return replace(stages(folder), model=Counting())


def dataset(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in files(folder).items() if not name.startswith(layout.DONE)}


def alone(folder: Path) -> dict[str, bytes]:
    run_shard(GOOD, stages(folder), stop=never)
    return dataset(folder)


def once(action: Callable[[], object]) -> Callable[[], bool]:
    """As ``stop``, which is asked before each batch: does something before the first one."""
    actions = [action]

    def stop() -> bool:
        while actions:
            actions.pop()()
        return False

    return stop


@pytest.mark.parametrize(("most", "own_calls"), [(1, 2), (2, 1), (9, 0)])
def test_what_a_helper_makes_is_not_made_again(tmp_path: Path, most: int, own_calls: int) -> None:
    work, lender, helper = Batches(GOOD.shard_id), counting(tmp_path / "run"), counting(tmp_path / "run")

    def lend() -> None:
        ids = [draw.sample_id for draw in work.lend(LOAN, most)]
        work.take_back(LOAN, help_with(GOOD, ids, helper, Batches(GOOD.shard_id), stop=never))

    result = run_shard(GOOD, lender, stop=once(lend), work=work)
    assert dataset(tmp_path / "run") == alone(tmp_path / "alone")
    assert (len(lender.model.calls), len(helper.model.calls)) == (own_calls, 3 - own_calls)  # type: ignore[attr-defined]
    assert result.usage == {"requests": 3.0}


@pytest.mark.parametrize("made", [0, 4, 6])
def test_what_a_lost_or_stopped_helper_has_not_made_is_made_here(tmp_path: Path, made: int) -> None:
    work, lender, helper = Batches(GOOD.shard_id), stages(tmp_path / "run"), stages(tmp_path / "run")

    def lend() -> None:
        ids = [draw.sample_id for draw in work.lend(LOAN, 2)]
        assert sorted(ids) == sorted(IDS[4:])
        work.take_back(LOAN, help_with(GOOD, IDS[4 : 4 + made], helper, Batches(GOOD.shard_id), stop=never) if made else None)
        work.take_back(LOAN, None)  # once is enough

    run_shard(GOOD, lender, stop=once(lend), work=work)
    assert dataset(tmp_path / "run") == alone(tmp_path / "alone")
    assert sum(lender.model.calls) == 12 - made - made % 4  # type: ignore[attr-defined]  # the batch of 2 is filled up


def test_the_shard_is_not_committed_before_the_loan_comes_back(tmp_path: Path) -> None:
    work, lent = Batches(GOOD.shard_id), list[str]()
    with ThreadPoolExecutor(1) as pool:
        lend = once(lambda: lent.extend(draw.sample_id for draw in work.lend(LOAN, 1)))
        running = pool.submit(run_shard, GOOD, stages(tmp_path / "run"), stop=lend, work=work)
        while not lent:
            assert not running.done()
        made = help_with(GOOD, lent, stages(tmp_path / "run"), Batches(GOOD.shard_id), stop=never)
        assert not running.done()
        work.take_back(LOAN, made)
        assert running.result().accepted == 10
    assert dataset(tmp_path / "run") == alone(tmp_path / "alone")


def test_a_loan_can_be_lent_on(tmp_path: Path) -> None:
    """The first helper lends a part of its part, here to the very worker that waits for it."""
    work, lender, helper = Batches(GOOD.shard_id), stages(tmp_path / "run"), stages(tmp_path / "run")

    def lend() -> None:
        ids, part = [draw.sample_id for draw in work.lend(LOAN, 2)], Batches(GOOD.shard_id)

        def lend_on() -> None:
            back = [draw.sample_id for draw in part.lend(LOAN, 1)]
            part.take_back(LOAN, help_with(GOOD, back, other, Batches(GOOD.shard_id), stop=never))

        work.take_back(LOAN, help_with(GOOD, ids, helper, part, stop=once(lend_on)))

    other = stages(tmp_path / "run")
    run_shard(GOOD, lender, stop=once(lend), work=work)
    assert dataset(tmp_path / "run") == alone(tmp_path / "alone")
    assert [one.model.calls for one in (lender, helper, other)] == [[4], [4], [4]]  # type: ignore[attr-defined]


def test_a_stop_keeps_what_the_helper_has_made(tmp_path: Path) -> None:
    work, asked, resumed = Batches(GOOD.shard_id), [0], stages(tmp_path / "run")

    def stop() -> bool:
        if not asked[0]:
            ids = [draw.sample_id for draw in work.lend(LOAN, 1)]
            work.take_back(LOAN, help_with(GOOD, ids, stages(tmp_path / "run"), Batches(GOOD.shard_id), stop=never))
        asked[0] += 1
        return True

    assert run_shard(GOOD, stages(tmp_path / "run"), stop=stop, work=work).drained
    run_shard(GOOD, resumed, stop=never)
    assert resumed.model.calls == [4, 4]  # type: ignore[attr-defined]
    assert dataset(tmp_path / "run") == alone(tmp_path / "alone")


def test_nothing_is_lent_twice_and_unknown_loans_are_nobody_s(tmp_path: Path) -> None:
    work = Batches(0)
    assert work.lend(1, 5) == []
    work.fill([GOOD.draws[:4], GOOD.draws[4:8], GOOD.draws[8:]])
    parts = [work.lend(1, 1), work.take(), work.lend(2, 5), work.lend(3, 5)]
    assert parts == [list(GOOD.draws[8:]), GOOD.draws[:4], list(GOOD.draws[4:8]), []]
    work.take_back(7, Made(outcomes=(), seconds={}, usage={}))
    assert not work.are_sampled  # one is in hand
    assert work.take() is None
    assert work.are_sampled
    work.take_back(1, None)
    assert (len(work), work.are_sampled) == (1, False)
