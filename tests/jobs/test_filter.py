"""``filter`` judges a run again from its stored scores: every reader sees it at once, the run's own files never change."""

import hashlib
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.filter import filter_run, judge_again
from jobs.judged import read_judged
from jobs.lease import hold
from jobs.query import query
from jobs.run import run as run_verb
from jobs.run_dir import RunDir
from jobs.status import status
from jobs.verify import verify
from pipeline.write import parquet_bytes
from schemas import layout
from schemas.config import FilterConfig
from schemas.errors import ConfigError, QueryError, RunFolderError
from tests.conftest import REPOSITORY
from tests.fakes import LOADER, fake_job
from tests.jobs.test_query import PROBES
from tests.runs import commit, digest_of_folder, finished_run, make_config, plan_run

VERDICTS = "select sample_id, status, reason, rank_in_prompt, is_best from metadata order by sample_id"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return finished_run(tmp_path / "run", prompts=12)


def rules(*each: dict) -> list[str]:
    return [f"filter.rules={json.dumps(each)}"]


def rows(run: RunDir, sql: str) -> list[dict]:
    return query([run.store.root], sql).to_pylist()


def own_files(run: RunDir) -> dict[str, str]:
    return {name: digest for name, digest in digest_of_folder(Path(run.store.root)).items() if name.split("/")[0] != "judged"}


def without_log(files: dict[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in files.items() if name != layout.EVENTS}


def test_other_thresholds_hold_for_every_reader_and_change_no_file_of_the_run(run: RunDir) -> None:
    before = without_log(own_files(run))
    change = filter_run(run.store.root, rules({"score": "clip", "min": 0.6}))
    counted = {
        (row["status"], row["reason"]): row["n"] for row in rows(run, "select status, reason, count(*)::int n from metadata group by all")
    }
    assert counted == change.after != change.before
    right = "clip_score >= 0.6 and not isnan(clip_score)"
    wrong = f"select count(*)::int n from metadata where status != 'failed' and (reason is null) != ({right})"
    assert rows(run, wrong) == [{"n": 0}]
    assert without_log(own_files(run)) == before
    found = status(run)
    assert found.judged
    assert (found.accepted, found.rejected, found.failed) == (counted["accepted", None], 24 - 2 - counted["accepted", None], 2)
    assert verify(run).ok


def test_without_rules_the_run_s_own_verdicts_come_back(run: RunDir) -> None:
    own = rows(run, VERDICTS)
    filter_run(run.store.root, rules({"score": "clip", "min": 0.6}))
    assert rows(run, VERDICTS) != own
    filter_run(run.store.root)
    assert rows(run, VERDICTS) == own
    assert run.store.list(layout.JUDGED) == []


def test_a_run_that_an_older_version_made_is_judged_again_like_any_other(run: RunDir) -> None:
    """Its tables lack columns of today."""
    for marker in run.markers():
        name = layout.metadata_file(marker.shard_id)
        data = parquet_bytes(pq.read_table(pa.BufferReader(run.store.get(name))).drop_columns(["guidance_interval"]))
        run.store.put(name, data)
        run.store.put(
            layout.done_file(marker.shard_id),
            json.dumps(asdict(replace(marker, metadata_sha256=hashlib.sha256(data).hexdigest()))).encode(),
        )
    before = rows(run, VERDICTS)
    filter_run(run.store.root, rules({"score": "clip", "min": 0.6}))
    assert rows(run, VERDICTS) != before
    assert rows(run, "select distinct guidance_interval from metadata") == [{"guidance_interval": None}]


def test_without_rules_a_run_of_many_shards_keeps_its_verdicts_in_larger_tables(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    own = rows(run, VERDICTS)
    monkeypatch.setattr("jobs.judged_tables.SHARDS_PER_TABLE", 4)
    filter_run(run.store.root)
    assert len(run.store.list(layout.JUDGED)) == 3, "6 shards in two tables, and the index"
    assert rows(run, VERDICTS) == own
    assert verify(run).ok


def test_a_run_of_many_shards_ends_with_its_metadata_in_larger_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.judged_tables.SHARDS_PER_TABLE", 2)
    texts, said = [f"picture {n} {'RAISE' * (n == 3)}" for n in range(22)], []
    rule = {"rules": [{"score": "bright", "min": 0.5}]}

    def make(*more: str) -> None:
        prompts = {"texts": [*texts, *more], "draws_per_prompt": 2}
        report = run_verb(
            fake_job(tmp_path, prompts=prompts, filter=rule), out=tmp_path / "run", model_loader=LOADER, on_message=said.append
        )
        counts = query([tmp_path / "run"], "select status, count(*)::int n from metadata group by 1").to_pylist()
        assert {row["status"]: row["n"] for row in counts} == {
            status: count for status in ("accepted", "rejected", "failed") if (count := getattr(report, status))
        }

    make()
    gathered = digest_of_folder(tmp_path / "run/judged")
    assert len(gathered) == 4, "6 shards in three tables, and the index"
    filter_run(tmp_path / "run")
    assert digest_of_folder(tmp_path / "run/judged") == gathered, "as filter writes them"
    make("one more", "and another")
    assert digest_of_folder(tmp_path / "run/judged") != gathered
    assert sum("gathered in larger tables" in text for text in said) == 2
    assert verify(RunDir.open(tmp_path / "run")).ok
    filter_run(tmp_path / "run", ['filter.rules=[{"score": "bright", "max": 0.5}]'])
    other = digest_of_folder(tmp_path / "run/judged")
    make("one more", "and another")
    assert digest_of_folder(tmp_path / "run/judged") == other, "the rules that were given stay"


def test_a_dry_run_counts_the_same_and_writes_nothing(run: RunDir) -> None:
    before = digest_of_folder(Path(run.store.root))
    dry = filter_run(run.store.root, rules({"score": "clip", "max": 0.6}), dry_run=True)
    assert digest_of_folder(Path(run.store.root)) == before
    assert filter_run(run.store.root, rules({"score": "clip", "max": 0.6})).after == dry.after != dry.before


def test_the_verdicts_do_not_depend_on_what_was_judged_before(run: RunDir) -> None:
    filter_run(run.store.root, rules({"score": "clip", "min": 0.6}))
    first = digest_of_folder(Path(run.store.root) / "judged")
    filter_run(run.store.root, rules({"keep": 3}))
    filter_run(run.store.root, rules({"score": "clip", "min": 0.6}))
    assert digest_of_folder(Path(run.store.root) / "judged") == first


def test_the_rules_of_the_job_give_the_same_verdicts_over_the_run_as_in_its_shards(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", prompts=40, config=make_config(draws_per_prompt=4))
    own = rows(run, VERDICTS)
    filter_run(run.store.root, ["filter.rank_by=clip"])  # says the same in other words
    assert read_judged(run.store) is not None
    assert rows(run, VERDICTS) == own


def test_prompts_that_lie_in_several_shards_are_ranked_and_their_best_kept(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", prompts=3, config=make_config(draws_per_prompt=10, shard_size=4))
    filter_run(run.store.root, rules({"keep": 2, "within": "prompt", "score": "clip"}))
    best = rows(
        run, "select prompt_id, clip_score from metadata qualify row_number() over (partition by prompt_id order by clip_score desc) <= 2"
    )
    kept = rows(run, "select prompt_id, clip_score from metadata where status = 'accepted'")
    assert sorted(map(str, kept)) == sorted(map(str, best))
    assert len(kept) == 6
    ranked = "select rank_in_prompt, rank() over (partition by prompt_id order by clip_score desc) as r from metadata"
    ranks = rows(run, f"select bool_and(rank_in_prompt = r) as ok from ({ranked})")
    assert ranks == [{"ok": True}]


def test_shares_and_quotas_count_within_each_class(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", prompts=40)
    per_label = "select label, count(*)::int n from metadata where status = 'accepted' group by 1 order by 1"
    filter_run(run.store.root, rules({"keep": 5, "within": "label"}))
    assert [row["n"] for row in rows(run, per_label)] == [5, 5]
    filter_run(run.store.root, rules({"keep_share": 0.5, "within": "label", "score": "clip"}))
    shares = """select label, avg((status = 'accepted')::int) filter (not isnan(clip_score)) share,
        min(clip_score) filter (status = 'accepted') > max(clip_score) filter (reason = 'clip_below_share') sharp
        from metadata where status != 'failed' group by 1"""
    assert all(abs(row["share"] - 0.5) < 0.03 and row["sharp"] for row in rows(run, shares))
    filter_run(run.store.root, rules({"keep": 1, "within": "tags.number", "score": "clip", "reason": "second_best"}))
    assert (
        rows(run, "select max(n)::int n from (select tags['number'] t, count(*) n from metadata where status = 'accepted' group by 1)")[0][
            "n"
        ]
        == 1
    )
    assert rows(run, "select count(*)::int n from metadata where reason = 'second_best'")[0]["n"] > 10


def test_a_condition_sees_the_whole_run(run: RunDir) -> None:
    filter_run(run.store.root, rules({"where": "clip_score > (select median(clip_score) from metadata) and tags['number'] != '0'"}))
    wrong = """with m as (select * replace (if(isnan(clip_score), null, clip_score) as clip_score) from metadata)
        select count(*)::int n from m where status != 'failed' and (status = 'accepted')
        != coalesce(clip_score > (select median(clip_score) from m) and tags['number'] != '0', false)"""
    assert rows(run, wrong) == [{"n": 0}]
    assert {row["reason"] for row in rows(run, "select distinct reason from metadata where status = 'rejected'")} == {"where"}


def test_hostile_conditions_are_refused_in_one_line_and_change_nothing(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("the secret\n")
    monkeypatch.setenv("PROMPTMILL_SECRET", "the secret")
    tricks = [
        "true) from metadata; drop view metadata; --",
        "true) as holds from metadata limit 1 --",
        "true) as holds, 1 from metadata --",
        "1) --",
    ]
    before = digest_of_folder(tmp_path)
    for probe in [*PROBES, *(f"({probe}) is not null" for probe in PROBES if not probe.startswith("select name")), *tricks]:
        text = probe.replace("RUN", run.store.root).replace("OUTSIDE", str(outside))
        with pytest.raises(QueryError) as caught:
            filter_run(run.store.root, rules({"where": text}))
        assert "\n" not in str(caught.value), probe
        assert "the secret" not in str(caught.value), probe
    after = digest_of_folder(tmp_path)
    assert after == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampling.steps=3", "only the keys of filter can be changed here"),
        ('filter.rules=[{"score": "clipp", "min": 0}]', "there is no scorer 'clipp'; scorers are: clip"),
        ('filter.rules=[{"score": "clip", "minimum": 0}]', "did you mean 'min'"),
        ('filter.rules=[{"keep": 3, "min": 0, "score": "clip"}]', "give one of"),
        ('filter.rules=[{"keep": 3, "within": "colour"}]', "within 'colour' is not known"),
        ('filter.rules=[{"keep": 3, "within": "tags"}]', "within 'tags' is not known"),
        ('filter.rules=[{"keep": 0}]', "greater than or equal to 1"),
    ],
)
def test_mistakes_are_told_in_one_line(run: RunDir, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        filter_run(run.store.root, [override])
    assert "\n" not in str(caught.value)
    assert read_judged(run.store) is None


def test_a_job_has_only_rules_that_one_image_can_answer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="for others run 'promptmill filter' when it is done"):
        fake_job(tmp_path, filter={"rules": [{"keep": 2, "within": "prompt"}]})


def test_a_run_that_is_at_work_is_not_judged(run: RunDir) -> None:
    import threading

    with hold(run.store, threading.Event()), pytest.raises(RunFolderError, match="is at work on it"):
        filter_run(run.store.root, rules({"keep": 3}))


def test_a_filter_that_dies_before_its_index_leaves_the_old_verdicts(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    filter_run(run.store.root, rules({"score": "clip", "min": 0.6}))
    old = rows(run, VERDICTS)
    kind = type(run.store)
    put = kind.put

    def dying(self: object, name: str, data: bytes) -> None:
        if name == layout.JUDGED_INDEX:
            raise RunFolderError("the machine dies here")
        put(self, name, data)  # type: ignore[arg-type]

    monkeypatch.setattr(kind, "put", dying)
    with pytest.raises(RunFolderError, match="dies here"):
        filter_run(run.store.root, rules({"keep": 3}))
    monkeypatch.undo()
    assert rows(run, VERDICTS) == old
    filter_run(run.store.root, rules({"keep": 3}))
    assert len(run.store.list(layout.JUDGED)) == 2
    assert len(rows(run, "from metadata where status = 'accepted'")) == 3


def test_shards_that_come_later_are_seen_at_once_and_judged_with_the_rest(tmp_path: Path) -> None:
    run = plan_run(tmp_path / "run", prompts=8)
    for shard_id in (0, 1):
        commit(run, shard_id)
    filter_run(run.store.root, rules({"keep": 3}))
    commit(run, 2)
    assert len(rows(run, "from metadata")) == 12
    assert len(rows(run, "from metadata where status = 'accepted' and shard_id < 2")) == 3
    commit(run, 3)
    assert judge_again(run)
    assert not judge_again(run)
    assert len(rows(run, "from metadata")) == 16
    assert len(rows(run, "from metadata where status = 'accepted'")) == 3


def test_a_run_that_goes_on_judges_its_new_shards_by_the_same_rules(tmp_path: Path) -> None:
    job = fake_job(tmp_path, prompts={"texts": [f"picture {n}" for n in range(5)], "draws_per_prompt": 2})
    run_verb(job, out=tmp_path / "run", model_loader=LOADER)
    filter_run(tmp_path / "run", rules({"keep": 1, "within": "prompt", "score": "bright"}))
    more = fake_job(tmp_path, prompts={"texts": [f"picture {n}" for n in range(9)], "draws_per_prompt": 2})
    report = run_verb(more, out=tmp_path / "run", model_loader=LOADER)
    run = RunDir.open(tmp_path / "run")
    assert rows(run, "select count(*)::int n, count(*) filter (status = 'accepted')::int kept from metadata") == [{"n": 18, "kept": 9}]
    assert (report.accepted, report.rejected) == (9, 9), "its summary counts the verdicts that hold"
    again = run_verb(more, out=tmp_path / "run", model_loader=LOADER)
    assert (again.made_now, again.accepted, again.rejected) == (0, 9, 9)
    assert verify(run).ok


def test_a_damaged_table_of_verdicts_is_found(run: RunDir) -> None:
    filter_run(run.store.root, rules({"keep": 3}))
    name = next(name for name in run.store.list(layout.JUDGED) if name.endswith(".parquet"))
    run.store.put(name, run.store.get(name)[:-1] + b"x")
    assert [problem.file for problem in verify(run).problems] == [name]
    run.store.put(layout.JUDGED_INDEX, b"{}")
    assert [problem.file for problem in verify(run).problems] == [layout.JUDGED_INDEX]
    with pytest.raises(RunFolderError, match="is damaged"):
        query([run.store.root], "from metadata")


def test_a_damaged_shard_is_not_judged(run: RunDir) -> None:
    run.store.put(layout.metadata_file(1), run.store.get(layout.metadata_file(2)))
    with pytest.raises(RunFolderError, match="not those that were committed"):
        filter_run(run.store.root, rules({"keep": 3}), dry_run=True)


def test_of_images_that_look_alike_the_best_is_kept(run: RunDir) -> None:
    filter_run(run.store.root, rules({"phash_distance": 16, "score": "clip"}))
    found = rows(run, "select phash, status, reason, clip_score from metadata where status != 'failed'")
    kept = [row for row in found if row["status"] == "accepted"]
    dropped = [row for row in found if row["reason"] == "near_duplicate"]

    def near(one: dict, other: dict) -> bool:
        return (int(one["phash"], 16) ^ int(other["phash"], 16)).bit_count() <= 16

    assert not any(near(one, other) for one in kept for other in kept if one is not other)
    for row in dropped:
        assert any(near(row, one) and not one["clip_score"] < row["clip_score"] for one in kept)
    assert np.isfinite(len(dropped))


def test_the_rules_are_recorded_with_the_run(run: RunDir) -> None:
    filter_run(run.store.root, rules({"score": "clip", "min": 0.6}))
    judged = read_judged(run.store)
    assert judged is not None
    assert FilterConfig.model_validate(judged.filter).rules[0].min == 0.6


def test_killed_at_any_operation_the_verdicts_are_the_old_or_the_new_ones(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", prompts=6)
    command = [sys.executable, "-m", "tests.crash_filter", run.store.root]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["points"] > 15
    assert seen["other"] == 0
    assert seen["old"] > 5
    assert seen["new"] > 1
    assert verify(run).ok
