"""``prompts.until_accepted``: further draws for prompts that lack accepted images, and only for those."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs.prepare import Prepared
from jobs.rounds import further
from jobs.run_dir import RunDir
from jobs.verify import verify
from pipeline import plan_files
from schemas import layout
from schemas.config_load import parse
from schemas.errors import ConfigError, PromptError, RunFolderError
from tests.fakes import fake_config, fake_job
from tests.jobs.test_run import LOCAL, RAY2, dataset, make

TEXTS = [f"picture {n}" for n in range(10)]


def job(folder: Path, *, wanted: int = 3, most: int = 40, limit: float = 0.501, **sections: Any) -> Prepared:
    """Two draws in the first round; about half of the images are bright enough."""
    prompts = {"texts": TEXTS, "draws_per_prompt": 2, "until_accepted": wanted, "max_draws_per_prompt": most}
    return fake_job(folder, **{"prompts": prompts, "filter": {"rules": [{"score": "bright", "min": limit}]}, **sections})


def rows(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder / "metadata").to_pylist()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rounds")
    assert make(job(folder), folder / "run").exit_code == 0
    return folder / "run"


def test_each_prompt_is_drawn_until_enough_are_accepted_and_no_longer(whole: Path) -> None:
    verdicts: dict[str, list[bool]] = {}
    for row in sorted(rows(whole), key=lambda row: row["draw_index"]):
        verdicts.setdefault(row["prompt_id"], []).append(row["status"] == "accepted")
    assert len({len(one) for one in verdicts.values()}) > 2
    for one in verdicts.values():
        assert sum(one) >= 3
        made = 2
        while sum(one[:made]) < 3:
            made += further(made, sum(one[:made]), wanted=3, most=40)
        assert made == len(one)
    assert verify(RunDir.open(whole)).problems == ()


@pytest.mark.parametrize(
    ("made", "accepted", "expected"),
    [(4, 3, 2), (2, 0, 2), (16, 0, 16), (32, 0, 8), (30, 3, 8), (39, 3, 1)],
    ids=["as many as are needed", "no more than so far", "again", "no more than are allowed", "by its share", "the last one"],
)
def test_how_many_draws_a_prompt_gets_in_the_next_round(made: int, accepted: int, expected: int) -> None:
    assert further(made, accepted, wanted=4, most=40) == expected


def test_the_draws_are_those_of_a_run_that_makes_all_of_them(whole: Path, tmp_path: Path) -> None:
    prompts = {"texts": TEXTS, "draws_per_prompt": 40}
    make(fake_job(tmp_path, prompts=prompts), tmp_path / "all")
    known = {row["sample_id"]: row["image_sha256"] for row in rows(tmp_path / "all")}
    assert all(known[row["sample_id"]] == row["image_sha256"] for row in rows(whole))


@pytest.mark.parametrize("executor", [LOCAL, pytest.param(RAY2, marks=pytest.mark.slow)], ids=["local", "ray"])
def test_a_run_that_was_stopped_anywhere_ends_with_the_same_bytes(whole: Path, tmp_path: Path, executor: dict) -> None:
    shards = sorted((whole / "done").iterdir())
    for number in (0, 3, len(shards) - 1) if executor == LOCAL else (len(shards) - 1,):
        run = tmp_path / f"run{number}"
        shutil.copytree(whole, run)
        if number < len(shards) - 1:  # as if it had been killed before any round but the first was planned
            index = json.loads((run / layout.PLAN_INDEX).read_text())
            first = index | {"rounds": 1, "num_draws": 20, "shards": index["shards"][:3]}
            (run / layout.PLAN_INDEX).write_text(json.dumps(first))
        for marker in shards[number:]:
            (run / "done" / marker.name).unlink()
        report = make(job(tmp_path, executor=executor), run)
        assert (report.exit_code, report.planned) == (0, len(rows(whole)))
        assert dataset(run) == dataset(whole)


def test_a_prompt_that_never_succeeds_is_given_up_and_told(tmp_path: Path) -> None:
    said: list[str] = []
    report = make(job(tmp_path, wanted=2, most=5, limit=1.0), tmp_path / "run", on_message=said.append)
    assert (report.planned, report.accepted) == (50, 0)
    assert Counter(row["prompt_id"] for row in rows(tmp_path / "run")) == Counter({f"{n:06d}": 5 for n in range(10)})
    assert said[-1] == "10 of 10 prompts have fewer than 2 accepted images after all of their 5 draws"
    again = make(job(tmp_path, wanted=2, most=5, limit=1.0), tmp_path / "run")
    assert (again.planned, again.made_now) == (50, 0)


def test_a_plan_file_that_is_not_full_is_gone_on_with(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "SHARDS_PER_PLAN_FILE", 2)
    make(job(tmp_path), tmp_path / "run")
    index = plan_files.read_index(RunDir.open(tmp_path / "run").store)
    assert index is not None
    assert index.num_shards == len(list((whole / "done").iterdir()))
    assert [row["sample_id"] for row in rows(tmp_path / "run")] == [row["sample_id"] for row in rows(whole)]
    assert verify(RunDir.open(tmp_path / "run")).problems == ()


def test_prompts_cannot_be_appended_once_further_draws_were_made(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    longer = job(tmp_path)
    prompts = longer.config.prompts.model_copy(update={"texts": [*TEXTS, "one more"]})
    appended = Prepared(
        name=longer.name,
        config=longer.config.model_copy(update={"prompts": prompts}),
        base_dir=longer.base_dir,
        model=longer.model,
        scorers=longer.scorers,
    )
    with pytest.raises(PromptError, match=r"prompts can no longer be appended; take them out, or choose another --out"):
        make(appended, run)
    assert dataset(run) == dataset(whole)


def test_another_number_is_another_job(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"prompts.until_accepted was 3, is 4; set it back, or choose another --out"):
        make(job(tmp_path, wanted=4), whole)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"prompts": {"until_accepted": 3}}, "'until_accepted' and 'max_draws_per_prompt' belong together"),
        ({"prompts": {"until_accepted": 3, "max_draws_per_prompt": 2}}, "'max_draws_per_prompt' must be at least 'until_accepted'"),
        (
            {"prompts": {"until_accepted": 1, "max_draws_per_prompt": 9}, "sampling": {"sweep": {"steps": [1, 2]}}},
            "cannot be had together with sampling.sweep or filter.best_of_prompt",
        ),
    ],
)
def test_what_cannot_be_is_refused(sections: dict[str, Any], message: str) -> None:
    raw = fake_config().model_dump(mode="json", exclude_unset=True)
    for name, section in sections.items():
        raw[name] = raw.get(name, {}) | section
    with pytest.raises(ConfigError, match=message):
        parse(raw, "job.yaml")
