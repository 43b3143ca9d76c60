"""``verify`` is silent about a good run, names the file and the remedy of whatever is wrong, and changes nothing."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import run as run_verb
from jobs.prepare import prepare
from jobs.remake import remaker
from jobs.run_dir import RunDir
from jobs.verify import Report, verify, verify_samples
from pipeline import plan
from schemas import layout
from schemas.errors import RunFolderError
from schemas.records import Draw, Outcome
from tests.fakes import sized
from tests.jobs.conftest import JobFile
from tests.runs import commit, digest_of_folder, finished_run, make_config, make_outcome, make_prompts, plan_run, spoiled

SHARD = 1  # prompts 2 and 3, nothing failed; shard 2 has the failed draws


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("verify") / "run"
    finished_run(path)
    return path


@pytest.fixture
def run(good: Path, tmp_path: Path) -> RunDir:
    """A copy of a good run, to be spoiled."""
    shutil.copytree(good, tmp_path / "run")
    return RunDir.open(tmp_path / "run")


def only(report: Report) -> tuple[str, str]:
    """File and whole line of the one problem of a report."""
    assert len(report.problems) == 1, [str(problem) for problem in report.problems]
    line = str(report.problems[0])
    assert "\n" not in line
    assert report.summary().startswith("1 problem in ")
    return report.problems[0].file, line


def put_and_sign(run: RunDir, name: str, table: pa.Table, **changes: int) -> None:
    """Replace a table of the shard and let its marker vouch for it."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    data = sink.getvalue().to_pybytes()
    run.store.put(name, data)
    key = "metadata_sha256" if name.startswith("metadata") else "images_sha256"
    sign(run, **{key: hashlib.sha256(data).hexdigest()}, **changes)


def sign(run: RunDir, **changes: object) -> None:
    name = layout.done_file(SHARD)
    run.store.put(name, json.dumps(json.loads(run.store.get(name)) | changes).encode())


def read(run: RunDir, name: str) -> pa.Table:
    return pq.read_table(pa.BufferReader(run.store.get(name)))


def with_column(table: pa.Table, name: str, values: Sequence[object]) -> pa.Table:
    at = table.schema.get_field_index(name)
    return table.set_column(at, table.schema.field(name), pa.array(values, table.schema.field(name).type))


def remake_right(run: RunDir) -> Callable[[Sequence[Draw]], list[Outcome]]:
    return lambda draws: [make_outcome(draw, run.job.config) for draw in draws]


@pytest.mark.parametrize("image_format", ["webp", "png", "jpeg"])
def test_a_good_run_has_no_problem_and_is_not_touched(tmp_path: Path, image_format: str) -> None:
    run = finished_run(tmp_path / "run", config=make_config(image_format=image_format))
    before = digest_of_folder(tmp_path / "run")
    seen: list[tuple[int, int]] = []
    report = verify(run, on_count=lambda what, done, total: seen.append((done, total)))
    assert report.problems == ()
    assert report.ok
    assert report.summary() == "no problem in 4 of 4 shards, 16 draws, 14 images"
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert digest_of_folder(tmp_path / "run") == before


def test_a_run_without_scorers_and_one_with_two_are_good(tmp_path: Path) -> None:
    for scorers in ((), ("clip", "taste")):
        assert verify(finished_run(tmp_path / f"run{len(scorers)}", config=make_config(scorers=scorers))).ok


def test_shards_that_are_not_made_yet_are_no_problem(tmp_path: Path) -> None:
    run = plan_run(tmp_path / "run")
    assert verify(run).summary() == "no problem in 0 of 4 shards, 0 draws, 0 images"
    commit(run, 2)
    report = verify(run)
    assert report.ok
    assert (report.shards, report.shards_planned, report.draws, report.images) == (1, 4, 4, 2)


def test_a_run_that_was_never_planned_is_refused(run: RunDir) -> None:
    run.store.delete(layout.PLAN_INDEX)
    with pytest.raises(RunFolderError, match="not planned"):
        verify(run)


@pytest.mark.parametrize("name", [layout.metadata_file(SHARD), layout.images_file(SHARD)])
def test_every_flipped_bit_is_found(run: RunDir, name: str) -> None:
    data = bytearray(run.store.get(name))
    for at in range(0, len(data), max(1, len(data) // 7)):
        run.store.put(name, bytes(data[:at]) + bytes([data[at] ^ 1]) + bytes(data[at + 1 :]))
        file, line = only(verify(run))
        assert file == name
        assert "sha256" in line
        assert line.endswith("delete done/00001.json and run the same command again")


@pytest.mark.parametrize("name", [layout.metadata_file(SHARD), layout.images_file(SHARD)])
def test_a_truncated_and_a_missing_file_are_named(run: RunDir, name: str) -> None:
    run.store.put(name, run.store.get(name)[:-9])
    assert only(verify(run))[0] == name
    run.store.delete(name)
    assert only(verify(run)) == (name, f"{name}: is missing; delete done/00001.json and run the same command again")


def test_bytes_that_are_signed_but_no_parquet_are_named(run: RunDir) -> None:
    run.store.put(layout.images_file(SHARD), b"PAR1")
    sign(run, images_sha256=hashlib.sha256(b"PAR1").hexdigest())
    assert "is not readable Parquet" in only(verify(run))[1]


def test_missing_and_foreign_rows_of_the_metadata_are_found(run: RunDir) -> None:
    name = layout.metadata_file(SHARD)
    table = read(run, name)
    put_and_sign(run, name, table.slice(1))
    assert "has 3 rows, the plan 4 draws, the marker 4" in only(verify(run))[1]
    put_and_sign(run, name, table.take([1, 0, 2, 3]))
    assert "the plan has" in only(verify(run))[1]
    put_and_sign(run, name, with_column(table, "prompt", ["changed", *table["prompt"].to_pylist()[1:]]))
    assert "differs from its draw in the plan" in only(verify(run))[1]
    put_and_sign(run, name, with_column(table, "seed", [seed + 1 for seed in table["seed"].to_pylist()]))
    assert "differs from its draw in the plan" in only(verify(run))[1]


def test_counts_of_the_marker_are_checked(run: RunDir) -> None:
    marker = run.marker(layout.done_file(SHARD))
    assert marker is not None
    sign(run, accepted=marker.accepted - 1, rejected=marker.rejected + 1)
    assert f"has {marker.accepted} accepted rows, the marker says {marker.accepted - 1}" in only(verify(run))[1]


def test_another_schema_is_told_by_its_column(run: RunDir) -> None:
    name = layout.metadata_file(SHARD)
    table = read(run, name)
    put_and_sign(run, name, table.drop_columns(["phash"]))
    assert "column phash is missing" in only(verify(run))[1]
    put_and_sign(run, name, table.append_column("mood", pa.array(["good"] * 4)))
    assert "has a further column mood" in only(verify(run))[1]
    put_and_sign(run, name, table.set_column(table.schema.get_field_index("steps"), "steps", table["steps"].cast(pa.int64())))
    assert "column steps is int64, should be int32" in only(verify(run))[1]
    put_and_sign(run, name, table.replace_schema_metadata({"promptmill_schema": "999"}))
    assert "has schema version 999" in only(verify(run))[1]


def test_images_that_do_not_belong_to_the_metadata_are_found(run: RunDir) -> None:
    name = layout.images_file(SHARD)
    table = read(run, name)
    put_and_sign(run, name, table.slice(1))
    assert "has 3 images, the metadata 4" in only(verify(run))[1]
    put_and_sign(run, name, table.take([1, 0, 2, 3]))
    assert "the metadata has" in only(verify(run))[1]
    put_and_sign(run, name, with_column(table, "image", table["image"].take([1, 0, 2, 3]).to_pylist()))
    assert "and 1 more images of the shard" in only(verify(run))[1]
    put_and_sign(run, name, with_column(table, "text", ["another caption", *table["text"].to_pylist()[1:]]))
    assert "is not its prompt" in only(verify(run))[1]


def test_an_image_that_hashes_right_but_is_no_picture_of_that_kind_is_found(run: RunDir, tmp_path: Path) -> None:
    right = [make_outcome(draw, run.job.config) for draw in run.read_shard(SHARD).draws]
    png = make_outcome(right[0].draw, make_config(image_format="png")).image
    larger = make_outcome(replace(right[0].draw, width=24), run.job.config).image
    assert png
    assert larger
    assert right[0].image
    for data, said in (
        (b"not an image", "cannot be decoded"),
        (right[0].image[:-40], "cannot be decoded"),
        (png, "is png of 16 x 16 px, its row says webp of 16 x 16 px"),
        (larger, "is webp of 24 x 16 px, its row says webp of 16 x 16 px"),
    ):
        commit(run, SHARD, outcomes=[spoiled(right[0], data), *right[1:]])
        file, line = only(verify(run))
        assert file == layout.images_file(SHARD)
        assert said in line


def test_failed_draws_have_dead_letters_and_no_image(run: RunDir) -> None:
    name = layout.failed_file(2)
    letters = json.loads(run.store.get(name))
    run.store.put(name, json.dumps(letters[:1]).encode())
    assert "holds 1 dead letters, the metadata 2 failed draws" in only(verify(run))[1]
    run.store.delete(name)
    assert "holds 0 dead letters, the metadata 2 failed draws" in only(verify(run))[1]


def test_markers_that_are_torn_of_another_plan_or_of_no_shard_are_named(run: RunDir) -> None:
    whole = run.store.get(layout.done_file(SHARD))
    sign(run, draws_sha256="0" * 16)
    assert "belongs to draws 0000000000000000" in only(verify(run))[1]
    run.store.put(layout.done_file(SHARD), whole[:-30])
    assert only(verify(run))[1].startswith("done/00001.json: is not a readable commit marker; delete done/00001.json")
    run.store.put(layout.done_file(SHARD), whole)
    run.store.put(layout.done_file(9), json.dumps(json.loads(whole) | {"shard_id": 9}).encode())
    assert only(verify(run))[1].startswith("done/00009.json: the plan has 4 shards, from 0; delete it")


def test_files_that_no_marker_stands_for_are_named(run: RunDir) -> None:
    run.store.delete(layout.done_file(SHARD))
    found = {problem.file: str(problem) for problem in verify(run).problems}
    assert set(found) == {layout.metadata_file(SHARD), layout.images_file(SHARD)}
    assert found[layout.metadata_file(SHARD)].endswith("has no commit marker; run the same command again, it finishes the shard")


def test_foreign_files_where_readers_look_are_named(run: RunDir) -> None:
    run.store.put("metadata/copy.parquet", b"x")
    run.store.put("images/00077.parquet", b"x")
    run.store.put("metadata/1.parquet", b"x")
    found = {problem.file: problem.what for problem in verify(run).problems}
    assert found == {
        "metadata/1.parquet": "is no file of a run",
        "metadata/copy.parquet": "is no file of a run",
        "images/00077.parquet": "belongs to no shard of the plan",
    }


def test_a_damaged_plan_is_named_with_its_own_remedy(run: RunDir) -> None:
    name = layout.plan_file(0)
    run.store.put(name, run.store.get(name)[:-20])
    problems = verify(run).problems
    assert {problem.file for problem in problems} == {name}
    assert all(str(problem).endswith("delete plan/plan.json and run the same command again") for problem in problems)


def test_a_sample_id_that_two_shards_share_is_found(tmp_path: Path) -> None:
    run = plan_run(tmp_path / "run", prompts=2, config=make_config(shard_size=2))
    config, prompt = run.job.config, make_prompts(1)[0]

    def expand(_: object) -> object:
        return plan.expand(prompt, config, sized(config, 16), model="imaginary", revision="0" * 40)

    plan.write_plan(run.store, lambda: iter(make_prompts(2)), expand, 2, 1)  # type: ignore[arg-type]
    commit(run, 0)
    commit(run, 1)
    problems = verify(run).problems
    assert {problem.file for problem in problems} == {layout.metadata_file(1)}
    assert "stands in shard 0 too" in problems[0].what


def test_all_problems_of_a_run_are_told_not_only_the_first(run: RunDir) -> None:
    run.store.delete(layout.images_file(0))
    run.store.delete(layout.metadata_file(3))
    report = verify(run)
    assert [problem.file for problem in report.problems] == [layout.images_file(0), layout.metadata_file(3)]
    assert report.summary() == "2 problems in 4 of 4 shards, 8 draws, 6 images"


@pytest.mark.parametrize(("count", "made"), [(1, 1), (3, 3), (14, 14), (500, 14)])
def test_images_are_made_again_evenly_spread_and_compared(run: RunDir, count: int, made: int) -> None:
    asked: list[Draw] = []

    def remake(draws: Sequence[Draw]) -> list[Outcome]:
        asked.extend(draws)
        return remake_right(run)(draws)

    report = verify(run, regenerate=count, remake=remake)
    assert report.ok
    assert report.regenerated == len(asked) == made
    assert report.summary().endswith(f", {made} images made again")
    assert len({draw.sample_id for draw in asked}) == made
    if count == 3:
        assert [draw.prompt_id for draw in asked] == ["p1", "p3", "p6"]


def test_an_image_that_comes_out_differently_is_named(run: RunDir) -> None:
    def remake(draws: Sequence[Draw]) -> list[Outcome]:
        first, *rest = remake_right(run)(draws)
        return [spoiled(first, b"other"), *rest]

    file, line = only(verify(run, regenerate=14, remake=remake))
    assert file == layout.images_file(0)
    assert "comes out differently; compare device and versions with those in job.yaml" in line


def test_an_image_that_fails_or_has_another_batch_shape_the_second_time_says_so(run: RunDir) -> None:
    def remake(draws: Sequence[Draw]) -> list[Outcome]:
        one, two = remake_right(run)(draws)
        return [
            replace(one, image=None, image_sha256=None, error="out_of_memory: 3 GB\nwere needed"),
            replace(spoiled(two, b"other"), batch_shape="2x16x16"),
        ]

    lines = [str(problem) for problem in verify(run, regenerate=2, remake=remake).problems]
    assert "cannot be made again: out_of_memory: 3 GB were needed" in lines[0]
    assert "was made in a batch of 4x16x16, and differs in one of 2x16x16" in lines[1]


def test_a_run_of_an_older_version_is_told_as_such_and_its_images_can_be_made_again(run: RunDir) -> None:
    for name in (layout.plan_file(0), layout.metadata_file(SHARD)):
        groups = pq.ParquetFile(pa.BufferReader(run.store.get(name)))
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, groups.schema_arrow.remove(groups.schema_arrow.get_field_index("guidance_rescale"))) as writer:
            for number in range(groups.num_row_groups):
                writer.write_table(groups.read_row_group(number).drop_columns(["guidance_rescale"]))
        run.store.put(name, sink.getvalue().to_pybytes())
    assert verify_samples(run, [run.read_shard(SHARD).draws[0].sample_id], remake_right(run)).ok
    file, _ = only(verify(run))
    assert file == layout.metadata_file(SHARD)


def test_a_single_image_is_made_again_by_its_id(run: RunDir) -> None:
    first, second = (draw.sample_id for draw in run.read_shard(SHARD).draws[:2])
    asked: list[str] = []

    def remake(draws: Sequence[Draw]) -> list[Outcome]:
        asked.extend(draw.sample_id for draw in draws)
        return remake_right(run)(draws)

    report = verify_samples(run, [first, first, second], remake)
    assert asked == [first, second]
    assert report.summary() == "no problem in 1 of 4 shards, 2 draws, 2 images, 2 images made again"
    file, line = only(verify_samples(run, [second], lambda draws: [spoiled(one, b"other") for one in remake(draws)]))
    assert file == layout.images_file(SHARD)
    assert f"image {second} comes out differently" in line


def test_a_sample_without_an_image_is_refused_in_one_line(run: RunDir) -> None:
    failed = next(draw.sample_id for draw in run.read_shard(2).draws if draw.prompt_id == "p4")
    for sample_id, said in (
        (failed, r"failed \(out_of_memory\); .*--retry-failed"),
        ("0" * 20, "no such draw"),
        ("x' or true --", "no sample id"),
    ):
        with pytest.raises(RunFolderError, match=said) as caught:
            verify_samples(run, [sample_id], remake_right(run))
        assert "\n" not in str(caught.value)


def test_nothing_is_made_again_of_a_run_without_images(tmp_path: Path) -> None:
    run = plan_run(tmp_path / "run")
    assert verify(run, regenerate=5, remake=remake_right(run)).regenerated == 0


@pytest.mark.slow
def test_a_real_model_makes_any_image_again_to_the_byte(job: JobFile) -> None:
    run_verb.run(prepare(job.path), out=job.out)
    run = RunDir.open(job.out)
    remake = remaker(run)
    report = verify(run, regenerate=3, remake=lambda draws: [outcome for draw in draws for outcome in remake([draw])])
    assert report.problems == ()
    assert report.regenerated == 3
    assert verify_samples(run, [run.read_shard(0).draws[-1].sample_id], remake).ok
    report = verify(run, regenerate=3, remake=lambda draws: remake([replace(draw, seed=draw.seed ^ 1) for draw in draws]))
    assert len(report.problems) == 3
    assert all("comes out differently" in str(problem) for problem in report.problems)
