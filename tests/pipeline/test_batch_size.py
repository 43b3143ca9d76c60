"""``batch_size: auto`` is a function of the job and the device: what it chooses, and that the choice holds ever after."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.batch_size import LARGEST, ON_CPU, Trial, _fitting, choose, even, largest
from pipeline.inputs import Conditions
from pipeline.models.base import Generated
from pipeline.worker import WorkOrder
from schemas.errors import ModelError
from schemas.records import Draw
from tests.fakes import CARD, LOADER, FakeModel, fake_job, make_draw

GB = 10**9


@dataclass
class Memory:
    """A device on which images take so much each, beside the weights."""

    total_bytes: int
    peaks: list[int]
    ran: list[object] = field(default_factory=list)

    def peak_bytes(self, work: Callable[[], object]) -> int:
        self.ran.append(work())
        return self.peaks[len(self.ran) - 1]


def order(loader: str = LOADER, **sections: object) -> WorkOrder:
    job = fake_job(Path.cwd(), **{"sampling": {"batch_size": "auto"}} | sections)
    return WorkOrder(root="/nowhere", config=job.config.model_dump(mode="json"), model=CARD, scorers=job.scorers, model_loader=loader)


def load_single(card: object, config: object) -> FakeModel:
    """A model on a device that holds one image at a time."""
    return FakeModel(largest_batch=1)


class Refined(FakeModel):
    """Has nothing to do in less than one step."""

    def generate(self, draws: Sequence[Draw], conditions: Sequence[Conditions] = ()) -> Generated:
        if draws[0].steps // 3 < 1:
            raise ValueError("no step is left")
        return super().generate(draws, conditions)


def load_with_refiner(card: object, config: object) -> FakeModel:
    """A model whose second stage makes a third of the steps."""
    return Refined()


@pytest.mark.parametrize(
    ("one", "two", "room", "expected"),
    [
        (5 * GB, 6 * GB, 40 * GB, 32),  # 4 GB stay, 1 GB an image: 36 fit
        (5 * GB, 6 * GB, 11 * GB, 4),  # 7 fit
        (5 * GB, 6 * GB, 6 * GB, 2),
        (5 * GB, 6 * GB, 5 * GB, 1),
        (5 * GB, 6 * GB, 4 * GB, 1),  # even one is more than is allowed for; it was made all the same
        (5 * GB, 5 * GB, 80 * GB, LARGEST),
    ],
)
def test_the_largest_power_of_two_that_fits(one: int, two: int, room: int, expected: int) -> None:
    assert largest(one, two, room) == expected


@pytest.mark.parametrize(
    ("size", "draws", "expected"), [(8, 64, 8), (8, 4, 4), (32, 48, 24), (32, 101, 26), (8, 9, 5), (1, 7, 1), (64, 1, 1)]
)
def test_batches_of_a_shard_are_equal_and_no_larger_than_fits(size: int, draws: int, expected: int) -> None:
    found = even(size, draws)
    assert found == expected
    assert found <= size
    assert -(-draws // found) == -(-draws // size)  # as many batches, less filled up


def test_a_gpu_is_measured_with_two_batches_and_used_to_four_fifths_of_a_workers_share() -> None:
    memory = Memory(20 * GB, [5 * GB, 6 * GB])
    assert _fitting(order(), Trial(draw=make_draw(), draws_at_once=64), memory) == 8  # 4 + n <= 16
    assert len(memory.ran) == 2
    assert _fitting(order(), Trial(draw=make_draw(), draws_at_once=64, gpu_share=0.5), Memory(20 * GB, [5 * GB, 6 * GB])) == 4


def test_a_gpu_that_holds_one_image_makes_one_at_a_time() -> None:
    found = _fitting(order("tests.pipeline.test_batch_size:load_single"), Trial(draw=make_draw(), draws_at_once=64), Memory(GB, [GB, GB]))
    assert found == 1


def test_a_second_stage_is_measured_with_as_many_steps_as_it_makes() -> None:
    refined = order("tests.pipeline.test_batch_size:load_with_refiner", model={"id": "fake", "second_stage": "refiner"})
    trial = Trial(draw=make_draw(steps=20), draws_at_once=64)
    assert _fitting(refined, trial, Memory(20 * GB, [5 * GB, 6 * GB])) == 8
    plain = order("tests.pipeline.test_batch_size:load_with_refiner")
    with pytest.raises(ModelError, match="needs a draw to measure"):
        _fitting(plain, trial, Memory(20 * GB, [5 * GB, 6 * GB]))


def test_a_draw_that_fails_measures_nothing() -> None:
    with pytest.raises(ModelError, match=r"auto needs a draw to measure, and the first one fails .*RuntimeError.*; give a number"):
        _fitting(order(), Trial(draw=make_draw(prompt="RAISE"), draws_at_once=64), Memory(GB, [1, 2]))


def test_without_a_gpu_nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    nothing = order("tests.fakes:no_such_loader")
    assert choose(nothing, Trial(draw=make_draw(), draws_at_once=64)) == ON_CPU
    assert choose(nothing, Trial(draw=make_draw(), draws_at_once=6)) == 6


def test_a_servers_batch_is_as_large_as_it_takes_requests_at_once() -> None:
    model = {"id": "dall-e-3", "endpoint": {"url": "http://127.0.0.1:1/v1", "concurrency": 6}}
    assert choose(order(model=model), Trial(draw=make_draw(), draws_at_once=64)) == 6
