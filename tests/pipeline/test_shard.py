"""One shard from draws to committed files: what is in them, in what order, and what a stop leaves."""

import itertools
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.shard import Stages, remake, run_shard
from pipeline.store import LocalStore
from schemas import layout
from schemas.errors import ShardError
from schemas.records import Shard
from schemas.tables import images_schema, metadata_schema
from tests.fakes import Brightness, FakeModel, fake_config, make_draw, scorer_card

BAD = Shard(
    shard_id=3, draws=(make_draw(0), make_draw(1, prompt="RAISE"), make_draw(2, prompt="BLANK"), make_draw(3, prompt="NAN"), make_draw(4))
)
GOOD = Shard(shard_id=0, draws=tuple(make_draw(n, label="cat", tags={"colour": "red"}) for n in range(10)))


def stages(folder: Path, **sections: object) -> Stages:
    return Stages(
        config=fake_config(**sections),
        model=FakeModel(),
        scorers=[Brightness(scorer_card())],
        store=LocalStore(folder),
        encoders=ThreadPoolExecutor(1),
        worker="test",
    )


def never() -> bool:
    return False


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_tables_have_the_documented_schemas_and_the_planned_order(tmp_path: Path) -> None:
    run_shard(GOOD, stages(tmp_path), stop=never)
    metadata, images = (pq.read_table(tmp_path / name) for name in (layout.metadata_file(0), layout.images_file(0)))
    for table, expected in ((metadata, metadata_schema(["bright"])), (images, images_schema())):
        assert table.schema.equals(expected)
        assert table.schema.metadata == expected.metadata
        assert [field.metadata for field in table.schema] == [field.metadata for field in expected]
    assert metadata["sample_id"].to_pylist() == images["sample_id"].to_pylist() == [draw.sample_id for draw in GOOD.draws]
    assert metadata["tags"].to_pylist() == [[("colour", "red")]] * 10
    assert set(metadata["batch_shape"].to_pylist()) == {"4x16x16"}


def test_failed_draws_stay_in_the_metadata_and_in_the_dead_letters(tmp_path: Path) -> None:
    result = run_shard(BAD, stages(tmp_path), stop=never)
    rows = pq.read_table(tmp_path / layout.metadata_file(3)).to_pylist()
    assert [(row["status"], row["reason"]) for row in rows] == [
        ("accepted", None),
        ("failed", "sampler_error"),
        ("rejected", "blank"),
        ("failed", "not_finite"),
        ("accepted", None),
    ]
    assert rows[1]["error"] == "sampler_error: RuntimeError: the model does not like this prompt"
    assert rows[1]["bright_score"] is None
    assert rows[1]["image_sha256"] is None
    assert (result.accepted, result.rejected, result.failed) == (2, 1, 2)
    letters = json.loads((tmp_path / layout.failed_file(3)).read_text())
    assert [(letter["sample_id"], letter["draw"]["prompt"]) for letter in letters] == [
        (BAD.draws[1].sample_id, "RAISE"),
        (BAD.draws[3].sample_id, "NAN"),
    ]
    assert pq.read_table(tmp_path / layout.images_file(3)).num_rows == 3


def test_the_marker_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    put = LocalStore.put

    def record(self: LocalStore, name: str, data: bytes) -> None:
        order.append(name)
        put(self, name, data)

    monkeypatch.setattr(LocalStore, "put", record)
    run_shard(BAD, stages(tmp_path), stop=never)
    assert order == ["images/00003.parquet", "metadata/00003.parquet", "failed/00003.json", "done/00003.json"]


def test_two_runs_write_the_same_bytes_but_for_the_marker(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run_shard(BAD, stages(tmp_path / name), stop=never)
    a, b = files(tmp_path / "a"), files(tmp_path / "b")
    assert {k: v for k, v in a.items() if not k.startswith("done/")} == {k: v for k, v in b.items() if not k.startswith("done/")}
    assert a.keys() == b.keys()


@pytest.mark.parametrize("stop_after", [0, 1, 2])
def test_a_stopped_shard_resumes_to_the_same_bytes_without_sampling_again(tmp_path: Path, stop_after: int) -> None:
    run_shard(GOOD, stages(tmp_path / "whole"), stop=never)
    asked = iter(range(100))
    stopped = run_shard(GOOD, stages(tmp_path / "parts"), stop=lambda: next(asked) >= stop_after)
    assert stopped.drained
    assert not (tmp_path / "parts" / layout.done_file(0)).exists()
    second = stages(tmp_path / "parts")
    assert not run_shard(GOOD, second, stop=never).drained
    assert second.model.calls == [4] * (3 - stop_after)  # type: ignore[attr-defined]
    a, b = files(tmp_path / "whole"), files(tmp_path / "parts")
    assert a.keys() == b.keys()
    assert all(a[name] == b[name] for name in a if not name.startswith("done/"))


def test_put_aside_batches_of_another_plan_are_not_used(tmp_path: Path) -> None:
    asked = iter(range(100))
    run_shard(GOOD, stages(tmp_path), stop=lambda: next(asked) >= 1)
    other = replace(GOOD, draws=(*GOOD.draws, make_draw(99)))
    second = stages(tmp_path)
    run_shard(other, second, stop=never)
    assert second.model.calls == [4] * 3  # type: ignore[attr-defined]


def test_a_shard_of_failures_is_an_error_until_the_last_try(tmp_path: Path) -> None:
    shard = Shard(shard_id=0, draws=(make_draw(prompt="RAISE"), make_draw(1, prompt="RAISE too")))
    with pytest.raises(ShardError, match="shard 0: all 2 draws failed, the first with sampler_error: RuntimeError"):
        run_shard(shard, stages(tmp_path), stop=never, keep_failures=False)
    assert files(tmp_path) == {}
    assert run_shard(shard, stages(tmp_path), stop=never).failed == 2


def test_dead_letters_go_when_a_shard_comes_out_clean_after_a_worker_died_over_it(tmp_path: Path) -> None:
    run_shard(BAD, stages(tmp_path), stop=never)
    run_shard(replace(GOOD, shard_id=3), stages(tmp_path), stop=never, carefully=True)
    assert LocalStore(tmp_path).list("failed") == []


def test_a_draw_made_again_alone_has_the_same_bytes(tmp_path: Path) -> None:
    run_shard(GOOD, stages(tmp_path), stop=never)
    sums = pq.read_table(tmp_path / layout.metadata_file(0))["image_sha256"].to_pylist()
    again = remake([GOOD.draws[7], GOOD.draws[2]], stages(tmp_path))
    assert [outcome.image_sha256 for outcome in again] == [sums[7], sums[2]]


def test_shards_of_one_worker_take_turns_on_the_device(tmp_path: Path) -> None:
    shared = stages(tmp_path)
    busy = threading.Lock()
    seeds: list[int] = []

    class OneAtATime(FakeModel):
        def generate(self, draws, conditions=()):
            assert busy.acquire(blocking=False)
            seeds.append(draws[0].seed)
            time.sleep(0.002)  # for the others to come and ask for the device
            try:
                return super().generate(draws, conditions)
            finally:
                busy.release()

    shared = replace(shared, model=OneAtATime())
    shards = [Shard(shard_id=n, draws=tuple(make_draw(10 * n + m) for m in range(10))) for n in range(6)]
    with ThreadPoolExecutor(2) as pool:
        assert all(result.failed == 0 for result in pool.map(lambda shard: run_shard(shard, shared, stop=never), shards))
    turns = [shard for shard, _ in itertools.groupby(seeds, lambda seed: seed // 10)]
    assert sorted(turns) == list(range(6)), "each is sampled in one go, so that it is written while the next one is sampled"


def test_a_shard_that_waits_for_the_device_can_be_stopped(tmp_path: Path) -> None:
    shared = stages(tmp_path)
    with shared.device.turn(never):  # another shard's
        result = run_shard(GOOD, shared, stop=lambda: True)
    assert result.drained
    assert shared.model.calls == []  # type: ignore[attr-defined]
    assert not run_shard(GOOD, shared, stop=never).drained


def test_the_parts_that_a_model_times_are_stages_of_their_own(tmp_path: Path) -> None:
    class Telling(FakeModel):
        def take_seconds(self):
            return {"text": 0.004, "decode": 0.008}

    spans: list[tuple[str, float]] = []
    watched = replace(stages(tmp_path), model=Telling(), on_stage=lambda stage, start, spent: spans.append((stage, spent)))
    seconds = run_shard(GOOD, watched, stop=never).seconds  # 3 batches
    assert seconds["text"] == pytest.approx(0.012)
    assert seconds["decode"] == pytest.approx(0.024)
    assert 0 < seconds["hash"] < sum(spent for stage, spent in spans if stage == "encode")
    assert 0 < seconds["write"] < sum(spent for stage, spent in spans if stage == "write")
    assert seconds["sample"] == pytest.approx(sum(spent for stage, spent in spans if stage == "sample") - 0.036, abs=0.001)
