"""``rescore`` adds the scores that the run itself would have had, makes no image, and goes on where it stopped."""

from pathlib import Path

import pytest

from jobs import rescore as module
from jobs.added_scores import read_scores, write_scores
from jobs.filter import filter_run
from jobs.judged import added_scorers
from jobs.query import query
from jobs.rescore import rescore
from jobs.run import run as run_verb
from jobs.run_dir import RunDir
from jobs.verify import verify
from schemas import layout
from schemas.errors import ConfigError, ModelError, RunFolderError
from schemas.tables import metadata_schema
from tests.fakes import LOADER, fake_job
from tests.runs import digest_of_folder

AGAIN = 'again={type: "tests.fakes:Brightness"}'
OWN = (layout.METADATA, layout.IMAGES, layout.DONE, layout.FAILED, layout.PLAN, layout.JOB)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    make(tmp_path, 10)
    return RunDir.open(tmp_path / "run")


def make(folder: Path, prompts: int, **sections: object) -> None:
    texts = ["RAISE", "BLANK", "UNSURE", *(f"picture {n}" for n in range(prompts - 3))]
    run_verb(fake_job(folder, prompts={"texts": texts, "draws_per_prompt": 2}, **sections), out=folder / "run", model_loader=LOADER)


def rows(run: RunDir, sql: str) -> list[dict]:
    return query([run.store.root], sql).to_pylist()


def own_files(run: RunDir) -> dict[str, str]:
    return {name: sha for name, sha in digest_of_folder(Path(run.store.root)).items() if name.split("/")[0] in OWN}


def test_the_same_scorer_gives_the_same_scores_and_the_run_stays_as_it_is(run: RunDir) -> None:
    before, verdicts = own_files(run), rows(run, "select sample_id, status, reason, is_best from metadata order by all")
    done = rescore(run.store.root, AGAIN)
    assert (done.images, done.shards, done.before) == (18, 3, 0)
    differing = "select count(*)::int n from metadata where again_score is distinct from bright_score or again_version is null"
    assert rows(run, differing) == [{"n": 0}]
    assert rows(run, "select count(again_score)::int n, count(*) filter (isnan(again_score))::int nan from metadata") == [
        {"n": 18, "nan": 2}
    ]
    assert own_files(run) == before
    assert rows(run, "select sample_id, status, reason, is_best from metadata order by all") == verdicts
    assert query([run.store.root], "from metadata").column_names == metadata_schema(["bright", "again"]).names
    assert verify(run).ok


def test_it_goes_on_where_it_stopped_and_what_is_there_is_not_made_again(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    score, shards = module.score_shard, []

    def dying(shard, *rest):
        if len(shards) == 2:
            raise KeyboardInterrupt
        shards.append(shard.shard_id)
        return score(shard, *rest)

    monkeypatch.setattr(module, "score_shard", dying)
    with pytest.raises(KeyboardInterrupt):
        rescore(run.store.root, AGAIN)
    assert "again_score" not in query([run.store.root], "from metadata").column_names
    monkeypatch.undo()
    done = rescore(run.store.root, AGAIN)
    assert (done.shards, done.before) == (1, 2)
    assert rescore(run.store.root, AGAIN).before == 3
    assert rows(run, "select count(again_score)::int n from metadata") == [{"n": 18}]


def test_rules_may_use_added_scores_and_added_scores_outlive_other_rules(run: RunDir) -> None:
    rescore(run.store.root, "sharp={type: sharpness}")
    filter_run(run.store.root, ['filter.rules=[{"score": "sharp", "min": 1}, {"where": "sharp_score > 2"}]'])
    assert rows(run, "select count(*)::int n from metadata where status = 'accepted' and not sharp_score > 2") == [{"n": 0}]
    filter_run(run.store.root)
    rescore(run.store.root, "bits={type: entropy}")
    assert rows(run, "select count(sharp_score)::int a, count(bits_score)::int b from metadata") == [{"a": 18, "b": 18}]


def test_shards_that_come_later_have_null_until_they_are_rescored(tmp_path: Path, run: RunDir) -> None:
    rescore(run.store.root, AGAIN)
    make(tmp_path, 14)
    missing = "select count(*)::int n from metadata where again_score is null and status != 'failed'"
    found = rows(run, missing)[0]["n"]
    assert found >= 8
    assert rescore(run.store.root, AGAIN).images >= 8
    assert rows(run, missing) == [{"n": 0}]
    assert rows(run, "select count(*)::int n from metadata where again_score is distinct from bright_score") == [{"n": 0}]


def test_verify_looks_at_added_scores(run: RunDir) -> None:
    rescore(run.store.root, AGAIN)
    mend = "run 'promptmill rescore' with that scorer again, it makes them"

    def problems() -> dict[str, str]:
        return {problem.file: f"{problem.what}; {problem.remedy}" for problem in verify(run).problems}

    marker, name = run.markers()[1], layout.scores_file(1, "again")
    version, data = added_scorers(run.store)["again"], run.store.get(name)
    scores = read_scores(run.store, marker, "again", version)
    assert scores is not None
    for spoiled in (data[:-9], b""):
        run.store.put(name, spoiled)
        assert problems()[name].startswith("is not readable Parquet: ")
    others = list(scores)[1:]
    for changed, what in (
        ({one: scores[one] for one in others}, f"has {len(others)} rows, the shard {len(scores)} images"),
        ({one: scores[one] for one in others} | {"0" * 20: (0.5, None)}, "its sample ids are not those of the shard"),
    ):
        write_scores(run.store, marker, "again", version, changed)
        assert problems() == {name: f"{what}; {mend}"}
    write_scores(run.store, marker, "again", "another@1", scores)
    assert problems() == {name: f"is of other images, or of another version of the scorer; {mend}"}
    run.store.put(name, data)
    run.store.put(layout.scores_file(0, "later"), data)
    assert problems() == {}, "a rescore that was stopped goes on with it"
    strays = {
        layout.scores_file(77, "again"): "belongs to no committed shard; delete it",
        "scores/x": "is no file of a run; move it elsewhere",
    }
    for stray in strays:
        run.store.put(stray, data)
    run.store.delete(name)
    assert problems() == {layout.SCORES: f"1 of 3 shards have no again scores, the first is 1; {mend}", **strays}
    run.store.put(layout.LEASE, b"{}")
    assert problems() == strays, "somebody is at work: it may be made now"


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("bright=demo", ConfigError, "the run has a scorer of that name"),
        ("demo", ConfigError, "write NAME=MODEL"),
        ("Sharp={type: sharpness}", ConfigError, "lower-case"),
        ("sharp={kind: sharpness}", ConfigError, "unknown key 'kind'"),
        ("sharp={type: sharpnes}", ModelError, "did you mean 'sharpness'"),
        ("sharp={type: ", ConfigError, "is not a YAML value"),
    ],
)
def test_mistakes_are_told_in_one_line(run: RunDir, text: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        rescore(run.store.root, text)
    assert "\n" not in str(caught.value)


def test_a_damaged_image_table_is_told(run: RunDir) -> None:
    run.store.put(layout.images_file(1), b"x")
    with pytest.raises(RunFolderError, match=r"images/00001\.parquet: cannot be read"):
        rescore(run.store.root, AGAIN)
