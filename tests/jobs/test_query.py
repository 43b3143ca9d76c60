"""``query`` answers from committed shards, and can neither write, nor leave the run, nor harm a terminal."""

import base64
import csv
import io
import json
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import jobs.query
from jobs.cli import cli
from jobs.filter import filter_run
from jobs.query import open_query, print_result, query, sql_type
from jobs.run_dir import RunDir
from schemas import layout
from schemas.errors import QueryError, RunFolderError
from schemas.tables import images_schema, metadata_schema
from tests.jobs.test_bad_input import refused
from tests.runs import commit, digest_of_folder, finished_run, make_config, plan_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("query") / "run"
    finished_run(path)
    return path


def test_arrow_types_have_the_names_that_duckdb_would_give_them() -> None:
    others = pa.schema([("list", pa.list_(pa.float32())), ("big", pa.uint64())])
    for schema in (metadata_schema(["clip"]), images_schema(), others):
        told = duckdb.from_arrow(schema.empty_table()).types
        assert [relation.types[0] for field in schema if (relation := duckdb.sql(f"select null::{sql_type(field.type)}"))] == told


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(table: pa.Table, form: str, file: io.StringIO | None = None) -> str:
    file = file or io.StringIO()
    print_result(table, form, file)
    return file.getvalue()


def refusal(run: Path, sql: str, **options: object) -> str:
    with pytest.raises(QueryError) as caught:
        query([run], sql, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message, "one line"
    return message


def test_counts_agree_with_what_was_written(run: Path):
    rows = query([run], "select status, reason, count(*)::int as n from metadata group by all order by all").to_pylist()
    assert {"status": "failed", "reason": "out_of_memory", "n": 2} in rows
    assert {"status": "rejected", "reason": "clip_not_a_number", "n": 2} in rows
    assert sum(row["n"] for row in rows) == 16


def test_images_join_metadata_by_sample_id_and_failed_draws_have_none(run: Path):
    table = query([run], "select m.status, i.image.bytes as data from metadata m left join images i using (sample_id)").to_pylist()
    assert all((row["data"] is None) == (row["status"] == "failed") for row in table)


def test_failed_is_the_failed_part_of_metadata(run: Path):
    assert query([run], "from failed").equals(query([run], "from metadata where status = 'failed'"))
    assert query([run], "select count(*)::int as n from failed").to_pylist() == [{"n": 2}]


def test_a_run_of_an_older_version_has_null_in_newer_columns(tmp_path: Path):
    whole, older = finished_run(tmp_path / "whole"), finished_run(tmp_path / "older")
    for path in (tmp_path / "older" / "metadata").iterdir():
        pq.write_table(pq.read_table(path).drop_columns(["guidance_rescale"]), path)
    columns = query([whole.store.root], "from metadata").column_names
    assert query([older.store.root], "from metadata").column_names == columns
    assert query([older.store.root], "select distinct guidance_rescale as new from metadata").to_pylist() == [{"new": None}]


def test_a_run_whose_configuration_is_of_another_version_can_be_queried(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = finished_run(tmp_path / "run")
    path = tmp_path / "run" / layout.JOB
    path.write_text(path.read_text().replace("  steps:", "  number_of_steps:"))
    assert query([tmp_path / "run"], "select count(*) as draws from metadata").to_pylist() == [{"draws": 16}]
    assert RunDir.open(tmp_path / "run").job.scorers == run.job.scorers
    assert "job.yaml [sampling]: unknown key 'number_of_steps'" in refused(capsys, "status", str(tmp_path / "run"))


def test_order_by_is_kept(run: Path):
    scores = query([run], "select seed from metadata order by seed desc").column("seed").to_pylist()
    assert scores == sorted(scores, reverse=True)


def test_only_shards_with_a_marker_are_seen_while_the_run_goes_on(tmp_path: Path):
    going = plan_run(tmp_path / "run")
    commit(going, 2)
    commit(going, 0)
    going.store.delete(layout.done_file(0))
    going.store.put(layout.done_file(1), b'{"shard_id": 1')
    counts = [query([tmp_path / "run"], f"from {view}").num_rows for view in ("metadata", "images", "failed")]
    assert counts == [4, 2, 2]
    assert query([tmp_path / "run"], "select distinct shard_id from metadata").to_pylist() == [{"shard_id": 2}]


def test_without_any_marker_the_views_have_all_columns_and_no_rows(tmp_path: Path, run: Path):
    plan_run(tmp_path / "run")
    for view, schema in (("metadata", metadata_schema(["clip"])), ("images", images_schema()), ("failed", metadata_schema(["clip"]))):
        empty, full = query([tmp_path / "run"], f"from {view}"), query([run], f"from {view}")
        assert empty.num_rows == 0
        assert empty.column_names == schema.names
        assert empty.schema.types == full.schema.types


def test_several_runs_are_told_apart_even_with_other_scorers(tmp_path: Path, run: Path):
    other = tmp_path / "other"
    finished_run(other, prompts=2, config=make_config(scorers=("aesthetic",)))
    sql = "select run, count(*)::int n, count(clip_score)::int clip, count(aesthetic_score)::int other from metadata group by 1 order by n"
    rows = query([run, other], sql).to_pylist()
    assert rows == [{"run": str(other), "n": 4, "clip": 0, "other": 4}, {"run": str(run), "n": 16, "clip": 14, "other": 0}]


@pytest.mark.parametrize("name", ["it's", "a[1]b", "star*", "what?", "label=cat", "ü {x}", 'quo"te', "#%41"])
def test_a_run_folder_may_have_any_name(tmp_path: Path, name: str):
    commit(plan_run(tmp_path / name), 0)
    table = query([tmp_path / name], "select * from metadata join images using (sample_id)")
    assert table.num_rows == 4
    assert "label" in table.column_names
    assert table.column("label").to_pylist() == ["class0", "class0", "class1", "class1"]


def test_a_relative_path_and_a_link_work(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(run.parent)
    (tmp_path / "link").symlink_to(run)
    assert query(["run"], "from metadata").num_rows == query([tmp_path / "link"], "from metadata").num_rows == 16


PROBES = [
    "copy metadata to 'OUTSIDE/stolen.csv'",
    "copy (select 1) to 'RUN/metadata/00000.parquet'",
    "copy metadata from 'RUN/metadata/00000.parquet'",
    "with x as (copy metadata to 'RUN/metadata/00000.parquet') select 1",
    "select * from query('copy metadata to ''OUTSIDE/stolen.csv''')",
    "from (copy metadata to 'OUTSIDE/stolen.csv')",
    "explain analyze copy metadata to 'OUTSIDE/stolen.csv'",
    "select 1; copy metadata to 'OUTSIDE/stolen.csv'",
    "select 1) ; drop view metadata; --",
    "export database 'OUTSIDE/stolen'",
    "import database 'OUTSIDE'",
    "create table t as select 1",
    "create or replace view metadata as select 1",
    "create secret s (type s3, key_id 'a', secret 'b')",
    "insert into metadata select * from metadata",
    "with x as (delete from metadata returning *) select * from x",
    "update metadata set status = 'accepted'",
    "delete from metadata",
    "drop view metadata",
    "alter view metadata rename to x",
    "attach 'OUTSIDE/new.duckdb' as new",
    "install httpfs",
    "load httpfs",
    "pragma database_list",
    "set enable_external_access = true",
    "set memory_limit = '1TB'",
    "reset lock_configuration",
    "set variable x = 1",
    "call enable_logging(storage = 'file', storage_path = 'OUTSIDE/log')",
    "select * from enable_logging(storage = 'file', storage_path = 'OUTSIDE/log')",
    "select * from enable_profiling(save_location = 'OUTSIDE/profile.json')",
    "begin",
    "prepare x as select 1",
    "vacuum",
    "select * from read_text('OUTSIDE/secret.txt')",
    "select * from read_text('RUN/metadata/../../outside/secret.txt')",
    "select * from read_blob('/proc/self/environ')",
    "select * from read_csv('OUTSIDE/secret.txt')",
    "select * from sniff_csv('OUTSIDE/secret.txt')",
    "select * from read_parquet('OUTSIDE/other.parquet')",
    "select * from parquet_metadata('OUTSIDE/other.parquet')",
    "select * from 'OUTSIDE/other.parquet'",
    "select * from 'OUTSIDE/secret.txt'",
    "select * from query_table('OUTSIDE/other.parquet')",
    "select * from read_parquet('RUN/plan/*.parquet')",
    "select * from read_text('RUN/job.yaml')",
    "select * from glob('OUTSIDE/*')",
    "select * from glob('/*')",
    "select * from json_execute_serialized_sql(json_serialize_sql('from read_text(''OUTSIDE/secret.txt'')'))",
    "select * from read_json('http://127.0.0.1:9/x')",
    "select * from 's3://bucket/x.parquet'",
    "select * from duckdb_extensions()",
    "select getenv('PROMPTMILL_SECRET')",
    "select * from a_table_of_the_caller",
]


def test_hostile_sql_is_refused_in_one_line_and_changes_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    outside = run.parent / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("the secret\n")
    a_table_of_the_caller = pa.table({"x": ["the secret"]})
    pq.write_table(a_table_of_the_caller, outside / "other.parquet")
    monkeypatch.setenv("PROMPTMILL_SECRET", "the secret")
    monkeypatch.chdir(tmp_path)
    before = digest_of_folder(run.parent)
    for probe in PROBES:
        message = refusal(run, probe.replace("RUN", str(run)).replace("OUTSIDE", str(outside)))
        assert message.startswith("query: "), probe
        assert "the secret" not in message, probe
    assert digest_of_folder(run.parent) == before
    assert os.listdir(tmp_path) == []


def test_no_setting_betrays_a_folder_of_the_machine(run: Path):
    settings = query([run], "select name, value from duckdb_settings() where value like '%/%'").column("name").to_pylist()
    assert set(settings) <= {"allowed_paths", "duckdb_api", "TimeZone"}


def test_a_query_that_takes_too_long_is_stopped(run: Path):
    start = time.monotonic()
    message = refusal(run, "select count(*) from range(1000000000) a, range(1000000000) b", timeout_seconds=0.3)
    assert message == "query: took longer than 0.3 s; select fewer rows, or allow more time"
    assert time.monotonic() - start < 60  # all of it would take years


def test_ctrl_c_stops_a_query(run: Path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process that was started in the background ignores it
    timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            query([run], "select count(*) from range(1000000000000) where hash(range) % 7 = 3", timeout_seconds=60)
        assert time.monotonic() - started < 50
    finally:
        timer.cancel()
        timer.join()
        signal.signal(signal.SIGINT, before)


def test_the_time_limit_holds_while_rows_are_read(run: Path):
    with (
        pytest.raises(QueryError, match=r"took longer than 0\.5 s"),
        open_query([run], "select * from range(100000000000)", timeout_seconds=0.5) as result,
    ):
        for _ in result.batches:
            pass


def test_a_large_result_is_streamed_not_collected(run: Path):
    with open_query([run], "select * from range(100000000000)", memory="100MB") as result:
        assert next(result.batches).num_rows > 0


def test_a_query_that_needs_too_much_memory_is_refused_and_spills_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    message = refusal(run, "select list(a) from range(100000000) t(a)", memory="100MB")
    assert message == "query: needs more than 100MB of memory; select fewer columns, add a LIMIT, or allow more memory"
    assert os.listdir(tmp_path) == []


def test_mistakes_are_told_in_one_line_with_the_candidates(run: Path):
    assert 'column "clip_scor" not found' in refusal(run, "select clip_scor from metadata")
    assert '"clip_score"' in refusal(run, "select clip_scor\nfrom metadata")
    assert refusal(run, "select * from metdata").endswith("the tables are metadata, images, embeddings and failed")
    assert "syntax error" in refusal(run, "select * from metadata where")
    assert "Expected" not in refusal(run, "")
    assert "a red circle" in refusal(run, "select prompt::int from metadata where prompt_id = 'p0'")
    assert "UTF-8" in refusal(run, "select '\ud800'")
    assert "(e.g. 1GB)" in refusal(run, "select 1", memory="plenty")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(RunFolderError, match="not a run folder"):
        query([tmp_path], "select 1")


def test_a_missing_file_points_to_verify(tmp_path: Path):
    broken = finished_run(tmp_path / "run", prompts=4)
    broken.store.delete(layout.metadata_file(1))
    assert f"'promptmill verify {tmp_path / 'run'}' tells which" in refusal(tmp_path / "run", "select count(prompt) from metadata")


def judging(monkeypatch: pytest.MonkeyPatch, run: RunDir, minima: list[float]) -> None:
    """``promptmill filter`` publishes once a query has its views, before it reads; one more time for each of its tries."""
    make_views = jobs.query._make_views

    def then_filter(*arguments: Any) -> None:
        make_views(*arguments)
        if minima:
            with monkeypatch.context() as patch:
                patch.setattr(jobs.query, "_make_views", make_views)  # filter asks a query too
                filter_run(run.store.root, [f"filter.rules=[{{score: clip, min: {minima.pop(0)}}}]"])

    monkeypatch.setattr(jobs.query, "_make_views", then_filter)


KEPT = "select count(*)::int as n from metadata where status = 'accepted'"


def test_a_query_during_which_filter_publishes_sees_the_new_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = finished_run(tmp_path / "run")
    filter_run(run.store.root, ["filter.rules=[{score: clip, min: 0.2}]"])
    before = query([tmp_path / "run"], KEPT)["n"][0].as_py()
    judging(monkeypatch, run, [0.7])
    kept = query([tmp_path / "run"], KEPT)["n"][0].as_py()
    assert 0 < kept < before
    assert query([tmp_path / "run"], "select min(clip_score) >= 0.7 as ok from metadata where status = 'accepted'").to_pylist() == [
        {"ok": True}
    ]


def test_a_query_during_which_filter_publishes_again_and_again_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = finished_run(tmp_path / "run")
    filter_run(run.store.root, ["filter.rules=[{score: clip, min: 0.2}]"])
    judging(monkeypatch, run, [0.5, 0.6])
    assert refusal(tmp_path / "run", KEPT) == "query: the run was judged anew while it was read; run the same command again"
    assert query([tmp_path / "run"], KEPT).num_rows == 1


def test_json_has_maps_as_objects_bytes_as_base64_and_no_nan(run: Path):
    sql = "select prompt_id, tags, clip_score, image from metadata left join images using (sample_id) order by prompt_id, draw_index"
    table = query([run], sql)
    rows = json.loads(printed(table, "json"))
    assert rows[0]["tags"] == {"number": "0", "source": "made up"}
    assert rows[0]["clip_score"] == 0.129, "the shortest form of a float32"
    assert base64.b64decode(rows[0]["image"]["bytes"]) == table.column("image")[0]["bytes"].as_py()
    assert {row["clip_score"] for row in rows if row["prompt_id"] in ("p4", "p5")} == {None}
    assert [json.loads(line) for line in printed(table, "ndjson").splitlines()] == rows


def test_json_of_no_rows_is_an_empty_list(run: Path):
    assert json.loads(printed(query([run], "from metadata where false"), "json")) == []
    assert printed(query([run], "from metadata where false"), "ndjson") == ""


def test_every_type_of_duckdb_can_be_printed(run: Path):
    sql = """select 1::hugeint h, 1.5::decimal(9,2) d, uuid() u, interval 1 day i, [1, null] l, [1, 2]::int[2] a, {'a': {'b': 'x'::blob}} s,
        date '2026-01-02' dd, timestamptz '2026-01-02 03:04:05+00' ts, time '01:02:03' t, 'a'::enum('a', 'b') e, '101'::bit b, null n,
        union_value(k := 1) un, 'infinity'::double inf, true ok, map {1: [2.5::float]} m, 5::bignum bn"""
    table = query([run], sql)
    row = json.loads(printed(table, "json"))[0]
    assert row["h"] == 1
    assert row["d"] == 1.5
    assert row["l"] == [1, None]
    assert row["s"] == {"a": {"b": "eA=="}}
    assert row["dd"] == "2026-01-02"
    assert row["ts"].startswith("2026-01-02T03:04:05")
    assert row["inf"] is None
    assert row["ok"] is True
    assert row["m"] == {"1": [2.5]}
    for form in ("table", "csv", "ndjson"):
        assert printed(table, form)
    assert printed(table, "table", Terminal())


@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_a_value_beyond_python_is_refused_in_one_line(run: Path, form: str):
    with pytest.raises(QueryError, match="column 'ts' holds a value that cannot be shown"):
        printed(query([run], "select timestamp '290000-01-01' as ts"), form)


def test_csv_holds_no_formulas(run: Path):
    sql = """select * from (values (1, '=1+1', -1.5, 'a,b'), (2, '+1', null, 'c"d'), (3, '-1', 'nan'::double, 'e'), (4, '@x', 2, 'ü'),
        (5, chr(9) || 'x', 3, ''), (6, chr(13) || 'x', 4, null), (7, 'plain - text', 5, 'x')) t("n", "=text", number, other) order by n"""
    rows = list(csv.reader(io.StringIO(printed(query([run], sql), "csv"), newline="")))
    assert rows[0] == ["n", "'=text", "number", "other"]
    assert [row[1] for row in rows[1:]] == ["'=1+1", "'+1", "'-1", "'@x", "'\tx", "'\rx", "plain - text"]
    assert [row[2] for row in rows[1:]] == ["-1.5", "", "NaN", "2.0", "3.0", "4.0", "5.0"]
    assert [row[3] for row in rows[1:]] == ["a,b", 'c"d', "e", "ü", "", "", "x"]


def test_csv_writes_nested_values_as_json(run: Path):
    text = printed(query([run], "select tags, is_blank from metadata where prompt_id = 'p1' limit 1"), "csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert json.loads(rows[0]["tags"]) == {"number": "1", "source": "made up"}
    assert rows[0]["is_blank"] == "false"


def test_parquet_gives_back_the_same_table(run: Path):
    table = query([run], "from metadata order by sample_id")
    data = io.BytesIO()
    stdout = io.TextIOWrapper(data)
    print_result(table, "parquet", stdout)
    back = pq.read_table(pa.BufferReader(data.getvalue()))
    assert back.schema.names == table.schema.names
    assert back.num_rows == 16
    assert back.column("tags").to_pylist() == table.column("tags").to_pylist()
    with pytest.raises(QueryError, match="not for a terminal"):
        print_result(table, "parquet", Terminal())


def test_an_unknown_format_is_refused(run: Path):
    with pytest.raises(QueryError, match="choose one of table, json, ndjson, csv, parquet"):
        print_result(query([run], "select 1"), "xml", io.StringIO())


@pytest.mark.parametrize("file", [io.StringIO(), Terminal()], ids=["pipe", "terminal"])
def test_a_table_shows_the_size_of_bytes_and_never_the_bytes(run: Path, file: io.StringIO):
    text = printed(query([run], "select image.bytes as data from images order by sample_id limit 1"), "table", file)
    assert " bytes>" in text
    assert "RIFF" not in text
    assert "WEBP" not in text


def test_a_table_in_a_pipe_is_plain_and_whole(run: Path):
    text = printed(query([run], f"select '{'long ' * 100}' as text, 1 as n, null as nothing, 0.5 as half, 'nan'::float as bad"), "table")
    head, row = text.splitlines()
    assert head.split() == ["text", "n", "nothing", "half", "bad"]
    assert "long " * 100 in row
    assert row.split()[-4:] == ["1", "null", "0.5", "NaN"]
    assert "\x1b" not in text


def test_a_table_on_a_terminal_fits_its_width(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    narrow = printed(query([run], f"select '{'long ' * 100}' as text, 123456 as n from metadata"), "table", Terminal())
    assert max(map(len, narrow.splitlines())) <= 80
    assert "…" in narrow
    assert "123456" in narrow
    assert narrow.rstrip().endswith("16 rows")
    wide = printed(query([run], "from metadata"), "table", Terminal())
    assert "row 10" in wide
    assert "row 11" not in wide
    assert "the first 10 rows" in wide


@pytest.mark.parametrize("file", [io.StringIO(), Terminal()], ids=["pipe", "terminal"])
def test_a_prompt_cannot_steer_the_terminal(run: Path, file: io.StringIO, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "dumb")
    text = printed(query([run], "select 'a' || chr(27) || ']0;title' || chr(7) || chr(10) || chr(8238) || '[red]b' as p"), "table", file)
    assert r"a\x1b]0;title\x07\n\u202e[red]b" in text


def test_sql_may_come_from_a_file_or_the_input(run: Path, tmp_path: Path):
    sql = "-- über alles\nselect status,\n  count(*) as n\nfrom metadata\ngroup by all order by all;\n"
    file = tmp_path / "counts.sql"
    file.write_text("\ufeff" + sql)
    given = CliRunner().invoke(cli, ["query", str(run), "select status, count(*) as n from metadata group by all order by all"])
    read = CliRunner().invoke(cli, ["query", str(run), "--sql-file", str(file)])
    piped = CliRunner().invoke(cli, ["query", str(run), "--sql-file", "-"], input=sql)
    assert given.output == read.output == piped.output
    assert "accepted" in read.output
    both = CliRunner().invoke(cli, ["query", str(run), str(run), "--sql-file", str(file), "--format", "json"])
    assert sum(row["n"] for row in json.loads(both.output)) == 32


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"q\.sql: cannot be read: No such file"),
        (b"select '\xff'", r"q\.sql: is not text in UTF-8"),
        (b"copy metadata to '/tmp/x'", "only one SELECT is allowed"),
        (b"select 1; select 2", "only one SELECT is allowed"),
    ],
)
def test_a_wrong_sql_file_is_refused_in_one_line(
    run: Path, tmp_path: Path, content: bytes | None, message: str, capsys: pytest.CaptureFixture[str]
):
    if content is not None:
        (tmp_path / "q.sql").write_bytes(content)
    assert re.search(message, refused(capsys, "query", str(run), "--sql-file", str(tmp_path / "q.sql")))


def test_a_query_without_sql_says_what_is_missing(run: Path):
    result = CliRunner().invoke(cli, ["query", str(run)])
    assert result.exit_code == 2
    assert "give it after the run, or --sql-file" in result.output


def test_columns_of_the_views_are_those_of_the_schema(run: Path):
    assert query([run], "select column_name as c from (describe metadata)").column("c").to_pylist() == metadata_schema(["clip"]).names
    assert query([run], "describe images").column("column_name").to_pylist() == images_schema().names
    assert list(RunDir.open(run).job.scorers) == ["clip"]
