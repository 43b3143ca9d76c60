"""A draw that kills its worker's process is found by halving, wherever it stands, and its neighbours keep their images."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.shard import Stages, run_shard
from pipeline.suspects import DEATHS
from schemas import layout
from schemas.records import Shard
from tests.fakes import FakeModel, make_draw
from tests.pipeline.test_shard import files, never, stages


class Death(BaseException):
    """Stands for the end of the process: nothing after it runs."""


class Deadly(FakeModel):
    """Dies at a prompt with DEADLY in it."""

    def generate(self, draws, conditions=()):
        if any("DEADLY" in draw.prompt for draw in draws):
            raise Death
        return super().generate(draws, conditions)


def shard_of(*deadly: int) -> Shard:
    return Shard(shard_id=0, draws=tuple(make_draw(n, prompt="DEADLY" if n in deadly else f"picture {n}") for n in range(10)))


def deadly_stages(folder: Path) -> Stages:
    return replace(stages(folder), model=Deadly(), encoders=ThreadPoolExecutor(1))


def run_until_done(shard: Shard, folder: Path) -> int:
    """Try as a driver does; the number of processes that died."""
    for deaths in range(100):
        try:
            run_shard(shard, deadly_stages(folder), stop=never, carefully=deaths > 0)
        except Death:
            continue
        return deaths
    raise AssertionError("it never ends")


@pytest.mark.parametrize("deadly", [(0,), (3,), (6,), (9,), (1, 2), (0, 5, 9)])
def test_the_draws_that_kill_are_dead_lettered_and_no_other(tmp_path: Path, deadly: tuple[int, ...]) -> None:
    shard = shard_of(*deadly)
    run_until_done(shard, tmp_path)
    rows = pq.read_table(tmp_path / layout.metadata_file(0)).to_pylist()
    assert [row["status"] for row in rows] == ["failed" if n in deadly else "accepted" for n in range(10)]
    assert {row["reason"] for row in rows if row["status"] == "failed"} == {"process_died"}
    assert {row["attempts"] for row in rows} == {1, DEATHS}
    assert not list((tmp_path / "partial").iterdir())


def test_it_takes_a_death_per_halving_and_a_few_alone(tmp_path: Path) -> None:
    assert run_until_done(shard_of(2), tmp_path) == 1 + 1 + 1 + DEATHS  # as usual; in a batch of 4, of 2, alone


def test_neighbours_have_the_images_of_an_undisturbed_run(tmp_path: Path) -> None:
    run_until_done(shard_of(3), tmp_path / "disturbed")
    run_shard(shard_of(), stages(tmp_path / "clean"), stop=never)
    disturbed, clean = (
        {row["seed"]: row for row in pq.read_table(tmp_path / name / layout.metadata_file(0)).to_pylist()}
        for name in ("disturbed", "clean")
    )
    assert {n for n in range(10) if disturbed[n] != clean[n]} == {3}


def test_careful_work_without_a_death_changes_nothing(tmp_path: Path) -> None:
    shard = Shard(shard_id=0, draws=(*shard_of().draws, make_draw(10, prompt="RAISE"), make_draw(11, prompt="BLANK"), make_draw(12)))
    for name, carefully in (("plain", False), ("careful", True)):
        run_shard(shard, stages(tmp_path / name), stop=never, carefully=carefully)
    plain, careful = ({k: v for k, v in files(tmp_path / name).items() if not k.startswith("done")} for name in ("plain", "careful"))
    assert careful == plain


def test_a_death_for_another_reason_blames_nobody_for_long(tmp_path: Path) -> None:
    """Killed once in each call: every draw is suspect for a while, none fails."""

    class Killed(FakeModel):
        def __init__(self, seen: set[tuple]) -> None:
            super().__init__()
            self.seen = seen

        def generate(self, draws, conditions=()):
            names = tuple(dict.fromkeys(draw.sample_id for draw in draws))
            if names not in self.seen:
                self.seen.add(names)
                raise Death
            return super().generate(draws, conditions)

    seen: set[tuple] = set()
    for attempt in range(100):
        try:
            run_shard(shard_of(), replace(stages(tmp_path / "run"), model=Killed(seen)), stop=never, carefully=attempt > 0)
        except Death:
            continue
        break
    run_shard(shard_of(), stages(tmp_path / "clean"), stop=never)
    assert files(tmp_path / "run")["metadata/00000.parquet"] == files(tmp_path / "clean")["metadata/00000.parquet"]
    assert files(tmp_path / "run")["images/00000.parquet"] == files(tmp_path / "clean")["images/00000.parquet"]


def test_a_stop_keeps_what_is_known(tmp_path: Path) -> None:
    shard = shard_of(3)
    for carefully in (False, True):
        with pytest.raises(Death):
            run_shard(shard, deadly_stages(tmp_path), stop=never, carefully=carefully)
    assert run_shard(shard, deadly_stages(tmp_path), stop=lambda: True, carefully=True).drained
    with pytest.raises(Death):
        run_shard(shard, deadly_stages(tmp_path), stop=never, carefully=True)
    run_until_done(shard, tmp_path)
    assert pq.read_table(tmp_path / layout.metadata_file(0))["status"].to_pylist().count("failed") == 1
