"""The plan is a pure function of the job; prompts may be appended and nothing else."""

import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import plan
from pipeline.store import LocalStore
from schemas import layout
from schemas.errors import PromptError, RunFolderError
from schemas.records import Draw, PlanIndex, Prompt
from tests.fakes import CARD, fake_config, make_draw, sized


def prompts(count: int) -> list[Prompt]:
    return [Prompt(id=f"{n:06d}", text=f"picture {n}") for n in range(count)]


def write(store: LocalStore, rows: list[Prompt], shard_size: int = 8, draws: int = 2) -> PlanIndex:
    config = fake_config(prompts={"draws_per_prompt": draws})

    def expand(prompt: Prompt) -> Iterator[Draw]:
        return plan.expand(prompt, config, sized(config, 16), model=CARD.name, revision=CARD.revision)

    old = plan.survey(store, lambda: iter(rows))
    return old or plan.write_plan(store, lambda: iter(rows), expand, shard_size, batch_size=2)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_prompts_are_kept_whole_where_they_fit() -> None:
    draws = [[make_draw(prompt, draw_index=index) for index in range(count)] for prompt, count in enumerate([3, 3, 3, 10, 1])]
    sizes = [[draw.prompt_id for draw in shard.draws] for shard in plan.cut(draws, 8, batch_size=1)]
    assert sizes == [["000000"] * 3 + ["000001"] * 3, ["000002"] * 3 + ["000003"] * 5, ["000003"] * 5 + ["000004"]]


@pytest.mark.parametrize(
    ("draws_per_prompt", "shard_size", "batch_size", "sizes"),
    [
        (3, 64, 8, [48, 48, 24]),  # 16 prompts of 3 fill 6 batches; 21 would leave one place empty
        (3, 32, 16, [30, 30, 30, 30]),  # none fits: the fullest
        (1, 100, 64, [64, 56]),
        (1, 10, 64, [10] * 12),  # a batch is never full: the largest
        (40, 16, 16, [16, 16, 16, 16, 16, 16, 16, 8]),  # a prompt that is no whole one in any case
    ],
)
def test_shards_are_cut_where_their_batches_are_fullest(draws_per_prompt: int, shard_size: int, batch_size: int, sizes: list[int]) -> None:
    draws = [[make_draw(prompt, draw_index=number) for number in range(draws_per_prompt)] for prompt in range(120 // draws_per_prompt)]
    assert [len(shard.draws) for shard in plan.cut(draws, shard_size, batch_size)] == sizes


def test_each_setting_of_a_sweep_fills_its_own_batches() -> None:
    draws = [[make_draw(prompt, draw_index=n, guidance_scale=1.0 + n) for n in range(3)] for prompt in range(64)]
    shards = list(plan.cut(draws, 64, batch_size=16))
    assert [len(shard.draws) for shard in shards] == [48] * 4
    assert {len(batch) for shard in shards for batch in plan.batches(shard.draws, 16)} == {16}


def test_batches_group_draws_that_can_share_a_call() -> None:
    draws = [make_draw(n, guidance_scale=2.0 + n % 2) for n in range(7)]
    assert [[int(d.prompt_id) for d in batch] for batch in plan.batches(draws, 3)] == [[0, 2, 4], [6], [1, 3, 5]]


def test_what_is_read_back_is_what_was_planned(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    row = Prompt(id="a", text="x", negative="", label="cat", tags={"k": "v", "a": "b"})
    index = write(store, [row], draws=3)
    draws = plan.read_shard(store, 0).draws
    assert (index.num_prompts, index.num_draws, index.num_shards) == (1, 3, 1)
    assert [draw.draw_index for draw in draws] == [0, 1, 2]
    assert (draws[0].label, draws[0].tags, draws[0].negative_prompt) == ("cat", {"k": "v", "a": "b"}, "")
    assert index.shards[0] == plan.draws_digest(draws)


def test_the_same_prompts_leave_the_plan_alone(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    first = write(store, prompts(10))
    before = files(tmp_path)
    assert write(store, prompts(10)) == first
    assert files(tmp_path) == before


def test_appended_prompts_give_the_plan_of_a_fresh_start(tmp_path: Path) -> None:
    old, fresh = LocalStore(tmp_path / "old"), LocalStore(tmp_path / "fresh")
    first = write(old, prompts(10))
    extended = write(old, prompts(15))
    assert extended == write(fresh, prompts(15))
    assert files(tmp_path / "old") == files(tmp_path / "fresh")
    assert extended.shards[:2] == first.shards[:2]
    assert extended.shards[2] != first.shards[2]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda rows: rows[:-1], "was planned with 10 prompts, the source now ends after 9"),
        (lambda rows: rows[1:], r"prompt 0 \(from 0\) was 000000 'picture 0' and is now 000001 'picture 1'"),
        (
            lambda rows: [*rows[:4], Prompt(id="000004", text="other"), *rows[5:], *prompts(3)],
            r"prompt 4 \(from 0\) was 000004 'picture 4'",
        ),
        (
            lambda rows: [Prompt(id=p.id, text=p.text, negative="x") for p in rows],
            "the negative prompts or the settings of single prompts have changed",
        ),
    ],
)
def test_changed_prompts_are_refused_and_nothing_is_written(tmp_path: Path, change, expected: str) -> None:
    store = LocalStore(tmp_path)
    write(store, prompts(10))
    before = files(tmp_path)
    with pytest.raises(PromptError, match=expected):
        write(store, change(prompts(10)))
    assert files(tmp_path) == before


def test_repeated_ids_are_refused_with_both_rows(tmp_path: Path) -> None:
    rows = [*prompts(5), Prompt(id="000002", text="again")]
    with pytest.raises(PromptError, match=r"prompt id '000002' stands at prompts 2 and 5"):
        write(LocalStore(tmp_path), rows)
    assert files(tmp_path) == {}


def test_the_same_text_twice_gets_noise_and_ids_of_its_own(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    write(store, [Prompt(id="0", text="same"), Prompt(id="1", text="same")])
    draws = plan.read_shard(store, 0).draws
    assert len({draw.sample_id for draw in draws}) == len({draw.seed for draw in draws}) == 4


def test_a_shard_is_read_without_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "SHARDS_PER_PLAN_FILE", 2)
    store = LocalStore(tmp_path)
    index = write(store, prompts(20))
    assert store.list("plan") == ["plan/000000.parquet", "plan/000001.parquet", "plan/000002.parquet", "plan/plan.json"]
    assert [plan.draws_digest(plan.read_shard(store, n).draws) for n in range(5)] == list(index.shards)


@pytest.mark.slow
def test_the_plan_of_another_version_is_told_in_one_line(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    write(store, prompts(3))
    [path] = (tmp_path / "plan").glob("*.parquet")
    pq.write_table(pq.read_table(path).drop_columns(["steps"]), path)
    with pytest.raises(RunFolderError, match=r"lacks columns of this version of promptmill \(.*'steps'\); job.yaml names the version"):
        plan.read_shard(store, 0)


def test_planning_streams(tmp_path: Path) -> None:
    """Peak memory grows by far less than the draws would take."""
    store = LocalStore(tmp_path)

    def many(count: int) -> Iterator[Prompt]:
        return (Prompt(id=f"{n:06d}", text=f"a long prompt with number {n} " * 8) for n in range(count))

    def peak(count: int) -> int:
        tracemalloc.start()
        shards = plan.cut(([make_draw(int(p.id), prompt=p.text)] for p in many(count)), 100, 8)
        assert sum(len(shard.draws) for shard in shards) == count
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(20_000) < 2 * peak(2_000)
    assert store.list("plan") == []


def test_a_reader_of_the_plan_gives_every_shard_to_any_number_of_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "SHARDS_PER_PLAN_FILE", 3)
    store = LocalStore(tmp_path)
    index = write(store, prompts(40))
    opened: list[str] = []
    get = store.get
    monkeypatch.setattr(store, "get", lambda name: (opened.append(name), get(name))[1])
    reader = plan.PlanReader(store)
    assert [plan.draws_digest(reader.shard(n).draws) for n in range(index.num_shards)] == list(index.shards)
    assert opened == [layout.plan_file(n) for n in range(0, index.num_shards, 3)], "each file is read once"
    with ThreadPoolExecutor(4) as pool:
        assert [plan.draws_digest(shard.draws) for shard in pool.map(reader.shard, range(index.num_shards))] == list(index.shards)
