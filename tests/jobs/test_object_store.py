"""A run folder at an S3 URL: run, resume, status, query, verify and show do there what they do on a disk."""

import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.embed import embed
from jobs.export import export
from jobs.filter import filter_run
from jobs.query import query
from jobs.report import report
from jobs.rescore import rescore
from jobs.run import RunReport, Tally
from jobs.run_dir import RunDir
from jobs.show import contact_sheet
from jobs.status import status
from jobs.verify import verify
from pipeline import object_store
from pipeline.store import Store, open_store
from schemas import layout
from schemas.errors import QueryError, RunFolderError
from tests.fakes import LOADER, fake_job
from tests.jobs.test_bad_input import refused
from tests.jobs.test_run import VOLATILE, dataset, make
from tests.runs import digest_of_folder
from tests.s3 import BUCKET, proxy, s3_server


@pytest.fixture(scope="module", autouse=True)
def endpoint() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    return f"s3://{BUCKET}/{request.node.name}/run"


def objects(url: str) -> dict[str, bytes]:
    """As ``dataset`` for a folder."""
    store = open_store(url)
    folders = (layout.PLAN, layout.METADATA, layout.IMAGES, layout.FAILED, layout.PARTIAL)
    top = [name for name in store.top_level() if not name.startswith((*VOLATILE, *folders))]
    return {name: store.get(name) for name in (*top, *(name for folder in folders for name in store.list(folder)))}


def test_a_run_writes_the_bytes_that_it_writes_to_a_disk(tmp_path: Path, url: str) -> None:
    texts = ["fine", "RAISE", "BLANK", "also fine", *(f"picture {n}" for n in range(8))]
    job = fake_job(tmp_path, prompts={"texts": texts})
    assert run_to(job, url).exit_code == 1
    make(job, tmp_path / "run")
    assert objects(url) == dataset(tmp_path / "run")


def run_to(job, url: str, **options) -> RunReport:
    from jobs.run import run

    return run(job, out=url, model_loader=LOADER, **options)


def test_a_stopped_run_resumes_there(tmp_path: Path, url: str) -> None:
    job = fake_job(tmp_path, prompts={"texts": [f"SLOW picture {n}" for n in range(40)], "draws_per_prompt": 1})
    stop = threading.Event()

    def on_tally(tally: Tally) -> None:
        if tally.sampled and not stop.is_set():
            stop.set()
            os.kill(os.getpid(), 2)

    assert run_to(job, url, on_tally=on_tally).stopped
    assert status(RunDir.open(url)).state == "stopped"
    report = run_to(job, url)
    assert (report.exit_code, report.accepted) == (0, 40)
    make(job, tmp_path / "whole")
    assert objects(url) == dataset(tmp_path / "whole")
    found = status(RunDir.open(url))
    assert (found.state, found.starts, found.draws_done) == ("finished", 2, 40)


def test_requests_that_fail_now_and_then_change_nothing(tmp_path: Path, url: str, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(method: str, path: str, number: int) -> str | None:
        return {3: "500", 5: "late 500"}.get(number % 7)

    job = fake_job(tmp_path)
    with proxy(endpoint, fault) as faulty:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faulty)
        assert run_to(job, url).exit_code == 0
        make(job, tmp_path / "run")
        assert objects(url) == dataset(tmp_path / "run")


def test_a_shard_takes_three_puts_and_two_looks_and_its_marker_is_not_read_again(
    tmp_path: Path, url: str, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[str] = []

    def fault(method: str, path: str, number: int) -> None:
        requests.append(f"{method} {folder(path)}")

    with proxy(endpoint, fault) as counting:
        monkeypatch.setenv("AWS_ENDPOINT_URL", counting)
        assert run_to(fake_job(tmp_path), url).exit_code == 0
        folders = (layout.IMAGES, layout.METADATA, layout.DONE, layout.PARTIAL, layout.FAILED)
        expected = {"HEAD partial": 3, "GET partial": 3} | {f"PUT {name}": 3 for name in folders[:3]}
        assert Counter(request for request in requests if request.endswith(folders)) == expected
        assert requests.count("POST ") == 1, "nothing is deleted but the lease"


def folder(path: str) -> str:
    """Of a request for an object; empty for others."""
    return path.partition("?")[0].partition("/run/")[2].partition("/")[0]


def test_a_slow_store_of_the_log_holds_nothing_up(tmp_path: Path, url: str, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told by the order of requests: no line of the log gets through before all shards are committed, and all do before the lease is
    given back.
    """
    committed = threading.Event()
    requests: list[tuple[str, str]] = []

    def fault(method: str, path: str, number: int) -> None:
        if method == "PUT" and f"/{layout.EVENTS}/" in path:
            assert committed.wait(60), "the run waits for its log"
        requests.append((method, folder(path)))

    def on_tally(tally: Tally) -> None:
        if tally.committed == 20:
            committed.set()

    with proxy(endpoint, fault) as slow, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", slow)
        assert run_to(fake_job(tmp_path), url, on_tally=on_tally).exit_code == 0
    log = [number for number, request in enumerate(requests) if request == ("PUT", layout.EVENTS)]
    assert log[0] > max(number for number, request in enumerate(requests) if request == ("PUT", layout.DONE))
    assert log[-1] < max(number for number, request in enumerate(requests) if request[0] == "POST"), "which deletes the lease"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("publish", "lease"))]
    events = [json.loads(line)["event"] for line in open_store(url).read_log(layout.EVENTS).splitlines()]
    assert events == ["start", "worker_ready", *["shard_done"] * 3, "finish"]


def test_a_log_that_cannot_be_published_ends_the_run_in_one_line(
    tmp_path: Path, url: str, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "PATIENCE_SECONDS", 2)

    def fault(method: str, path: str, number: int) -> str | None:
        return "500" if method == "PUT" and f"/{layout.EVENTS}/" in path else None

    with proxy(endpoint, fault) as broken, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", broken)
        with pytest.raises(RunFolderError, match=r"does not do as asked \(500 Internal Server Error"):
            run_to(fake_job(tmp_path), url)
    assert not open_store(url).exists(layout.LEASE)
    assert run_to(fake_job(tmp_path), url).exit_code == 0


def test_a_finished_run_can_be_read_checked_and_shown(tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    run_to(fake_job(tmp_path), url)
    run = RunDir.open(url)
    assert query([url], "select count(*) as n from metadata where status = 'accepted'").to_pylist() == [{"n": 20}]
    joined = "select count(*) as n from metadata join images using (sample_id) where octet_length(image.bytes) > 0"
    assert query([url], joined).to_pylist() == [{"n": 20}]
    assert verify(run).summary() == "no problem in 3 of 3 shards, 20 draws, 20 images"
    assert contact_sheet(url, tmp_path / "sheet.png", where="true", limit=4) == 4
    run.store.put(layout.images_file(1), run.store.get(layout.images_file(1))[:-1])
    assert [problem.file for problem in verify(run).problems] == [layout.images_file(1)]
    make_local = fake_job(tmp_path)
    make(make_local, tmp_path / "run")
    both = query([url, tmp_path / "run"], "select run, count(*) as n from metadata group by all order by n, run")
    assert both["n"].to_pylist() == [20, 20]


def test_a_query_there_reaches_nothing_else(tmp_path: Path, url: str) -> None:
    run_to(fake_job(tmp_path), url)
    (tmp_path / "secret.csv").write_text("a\n1\n")
    for sql in (f"select * from '{tmp_path}/secret.csv'", f"select * from read_parquet('{url}/metadata/00000.parquet')"):
        with pytest.raises(QueryError):
            query([url], sql)


def test_a_truncated_file_is_made_again_and_reported(tmp_path: Path, url: str) -> None:
    run_to(fake_job(tmp_path), url)
    store: Store = open_store(url)
    before = objects(url)
    store.put(layout.images_file(1), b"PAR1")
    said: list[str] = []
    assert run_to(fake_job(tmp_path), url, on_message=said.append).made_now == 8
    assert objects(url) == before
    assert any("done/00001.json: its files have" in line for line in said)
    events = [json.loads(line) for line in store.read_log(layout.EVENTS).splitlines()]
    assert "shard_damaged" in [event["event"] for event in events]


def test_no_credential_is_written_anywhere(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush-hush")
    run_to(fake_job(tmp_path), url)
    store = open_store(url)
    everything = [store.get(layout.JOB), store.read_log(layout.EVENTS), *objects(url).values()]
    assert not any(b"hush-hush-hush" in data for data in everything)


def test_a_prefix_with_other_things_in_it_is_refused(tmp_path: Path, url: str) -> None:
    open_store(url).put("thesis.txt", b"mine")
    with pytest.raises(RunFolderError, match="is not empty and holds no promptmill run"):
        run_to(fake_job(tmp_path), url)


@pytest.mark.parametrize("command", ["status", "verify"])
def test_a_place_that_is_no_run_is_refused_in_one_line(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert "s3://nowhere/run: there is no such bucket" in refused(capsys, command, "s3://nowhere/run")
    assert f"s3://{BUCKET}/nothing: is not a run folder" in refused(capsys, command, f"s3://{BUCKET}/nothing")


def test_a_run_is_judged_and_scored_again_there(tmp_path: Path, url: str) -> None:
    job = fake_job(tmp_path)
    run_to(job, url)
    make(job, tmp_path / "run")
    rules = 'filter.rules=[{"keep": 1, "within": "prompt", "score": "sharp"}, {"where": "sharp_score > 0"}]'
    verdicts = "select sample_id, status, reason, sharp_score, is_best from metadata order by sample_id"
    for root in (url, str(tmp_path / "run")):
        rescore(root, "sharp={type: sharpness}")
        filter_run(root, [rules])
    found = query([url], verdicts)
    assert found.equals(query([tmp_path / "run"], verdicts))
    assert found["status"].to_pylist().count("accepted") == 10
    store, local = open_store(url), open_store(tmp_path / "run")
    names = store.list(layout.JUDGED)
    assert {name: store.get(name) for name in names if name != layout.JUDGED_INDEX} == {
        name: local.get(name) for name in local.list(layout.JUDGED) if name != layout.JUDGED_INDEX
    }
    assert verify(RunDir.open(url)).ok


def test_a_run_there_is_exported_and_reported_as_one_on_a_disk(tmp_path: Path, url: str) -> None:
    job = fake_job(tmp_path)
    run_to(job, url)
    make(job, tmp_path / "run")
    for number, path in enumerate((url, str(tmp_path / "run"))):
        export(path, tmp_path / f"set{number}", form="hf")
    assert digest_of_folder(tmp_path / "set0") == digest_of_folder(tmp_path / "set1")
    assert report(url, tmp_path / "report.html") > 10_000
    assert embed(url, clip="demo").images == 20
    both = [query([path], "from embeddings order by sample_id").to_pylist() for path in (url, tmp_path / "run")]
    assert (len(both[0]), len(both[1])) == (20, 0)
    assert len(both[0][0]["embedding"]) > 8
    with pytest.raises(RunFolderError, match="an export goes to a folder of this machine"):
        export(url, f"{url}-set", form="hf")
