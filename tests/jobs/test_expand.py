"""``prompts.expand``: prompts in the words of a language model, asked once, recorded, and from then on a function of the record."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs.export import export
from jobs.plan import summarize
from jobs.run import RunReport, run
from jobs.run_dir import RunDir
from jobs.status import status
from jobs.verify import verify
from pipeline.models import endpoint_client
from schemas.errors import ModelError, PromptError, RunFolderError, UserError
from tests.chat_server import KEY, ChatServer, chatting
from tests.fakes import LOADER, fake_job
from tests.jobs.test_run import dataset
from tests.s3 import BUCKET, s3_server

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_client, "BACKOFF_SECONDS", 0.02)
    monkeypatch.setenv("CHAT_KEY", KEY)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chatting() as running:
        yield running


def expand(server: ChatServer, **more: Any) -> dict[str, Any]:
    fixed = {"url": server.url, "model": "writer", "count": 2, "api_key_variable": "CHAT_KEY", "timeout_seconds": 0.5, "max_tries": 3}
    return fixed | more


def make(folder: Path, server: ChatServer, *texts: str, out: str = "run", **more: Any) -> RunReport:
    prompts = {"texts": list(texts), "draws_per_prompt": 1, "expand": expand(server, **more)}
    return run(fake_job(folder, prompts=prompts), out=out if "://" in out else folder / out, model_loader=LOADER)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row | {"tags": dict(row["tags"])} for row in pq.read_table(folder / "metadata").to_pylist()]


def recorded(folder: Path) -> dict[str, dict[str, Any]]:
    """Whole lines of the record, by prompt."""
    lines = (folder / "expansions.jsonl").read_bytes().split(b"\n")[:-1]
    return {record["prompt"]: record for record in map(json.loads, filter(None, lines))}


def test_each_prompt_becomes_several_that_tell_where_they_come_from(tmp_path: Path, server: ChatServer) -> None:
    (tmp_path / "p.csv").write_text("id,prompt,label,colour\na,a red car,car,red\nb,a blue cup,cup,blue\n")
    prompts = {
        "file": "p.csv",
        "texts": None,
        "draws_per_prompt": 3,
        "expand": expand(server, keep_original=True, request={"temperature": 1}),
    }
    assert run(fake_job(tmp_path, prompts=prompts), out=tmp_path / "run", model_loader=LOADER).accepted == 18
    rows = rows_of(tmp_path / "run")
    assert list(dict.fromkeys(row["prompt_id"] for row in rows)) == ["a", "a-0", "a-1", "b", "b-0", "b-1"]
    assert [(row["prompt"], row["label"], row["tags"]) for row in rows[0:9:3]] == [
        ("a red car", "car", {"colour": "red"}),
        *(
            (f"a red car, version {n} at dusk", "car", {"colour": "red", "source_prompt": "a red car", "expanded_by": "writer"})
            for n in range(2)
        ),
    ]
    first = server.asked[0]
    assert (first["model"], first["temperature"]) == ("writer", 1)
    assert "into 2 more detailed ones" in first["messages"][0]["content"]
    record = recorded(tmp_path / "run")["a red car"]
    assert (record["model"], record["usage"]) == ("writer-2026-11-01", {"prompt_tokens": 10, "completion_tokens": 20})
    assert RunDir.open(tmp_path / "run").job.config.prompts.expand.instruction.startswith("Rewrite")  # type: ignore[union-attr]
    export(tmp_path / "run", tmp_path / "set", form="parquet", shard_bytes=10**6)
    assert "rewritten by writer, 2 of each, told&#58; Rewrite" in (tmp_path / "set/README.md").read_text()
    assert all(KEY.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_what_may_pass_is_asked_again_and_what_will_not_keeps_its_text(tmp_path: Path, server: ChatServer) -> None:
    passing, lasting = ["BUSY", "BROKEN", "SLOW", "GARBLED", "FEW"], ["REFUSED", "PROSE", "BLOCKED"]
    assert make(tmp_path, server, *(f"a cat {word}" for word in passing + lasting)).accepted == 16
    assert [server.tries[f"a cat {word}"] for word in passing + lasting] == [2, 3, 2, 2, 2, 1, 3, 1]
    rows = {row["prompt_id"]: row for row in rows_of(tmp_path / "run")}
    assert all(rows[f"{n:06d}-1"]["prompt"] == f"a cat {word}, version 1 at dusk" for n, word in enumerate(passing))
    kept = [rows[f"{n:06d}-1"] for n in range(5, 8)]
    assert [row["prompt"] for row in kept] == [f"a cat {word}" for word in lasting]
    assert [row["tags"]["expansion_error"].split(":")[0] for row in kept] == ["refused", "bad_answer", "refused"]


def test_what_a_model_writes_is_checked_as_the_source_is(tmp_path: Path, server: ChatServer) -> None:
    long = "a cat on a mat of a certain length"

    def made(**checks: Any) -> list[dict[str, Any]]:
        prompts = {"texts": ["a cat RUDE", long, "a dog"], "draws_per_prompt": 1, "expand": expand(server)}
        run(fake_job(tmp_path, prompts=prompts | checks), out=tmp_path / "run", model_loader=LOADER)
        return rows_of(tmp_path / "run")

    rows = made(blocklist=["bad words"], max_characters=45)
    assert [server.tries[text] for text in ("a cat RUDE", long, "a dog")] == [2, 3, 1]
    assert [row["prompt"] for row in rows[::2]] == ["a cat RUDE, version 0 at dusk", long, "a dog, version 0 at dusk"]
    error = "bad_answer: the answer holds 0 different prompts of 2; another has 53 characters, prompts.max_characters is 45; tried 3 times"
    assert rows[2]["tags"]["expansion_error"] == error
    assert "a whole prompt of at most 45 characters, and" in server.asked[0]["messages"][0]["content"]
    assert made(blocklist=["dusk"]) == rows, "what is recorded stays"
    assert len(server.asked) == 6
    with pytest.raises(PromptError, match=r"entry 0: the prompt holds 'RUDE', which prompts.blocklist forbids"):
        made(blocklist=["rude"])


def test_a_model_that_never_writes_a_list_ends_the_run_and_one_that_sometimes_does_not(tmp_path: Path, server: ChatServer) -> None:
    prose = [f"a cat PROSE {n}" for n in range(40)]
    with pytest.raises(
        ModelError, match=r"the first 2\d answers hold no list of prompts .*; try another model or instruction, with another"
    ):
        make(tmp_path, server, *prose, max_tries=1)
    assert len(server.asked) < 40, "the rest is not asked about"
    assert make(tmp_path, server, "a dog", *prose, out="other", max_tries=1).accepted == 82


def test_prompts_without_an_answer_end_the_run_and_the_same_command_asks_for_these_only(tmp_path: Path, server: ChatServer) -> None:
    texts = [*(f"a cat {n}" for n in range(6)), "a dog DOWN"]
    with pytest.raises(PromptError, match=r"1 of 7 prompts have no answer \(no_answer: 503 come back later; tried 3 times\)"):
        make(tmp_path, server, *texts)
    assert len(recorded(tmp_path / "run")) == 6
    server.asked.clear()
    with pytest.raises(RunFolderError, match=r"not planned \(6 answers of prompts.expand are there\); run the same command"):
        status(RunDir.open(tmp_path / "run"))
    with pytest.raises(PromptError, match="1 of 1 prompts"):
        make(tmp_path, server, *texts)
    assert {body["messages"][1]["content"] for body in server.asked} == {"a dog DOWN"}


def test_resuming_verifying_and_making_again_ask_nothing(tmp_path: Path, server: ChatServer) -> None:
    texts = [f"a cat {n}" for n in range(8)]
    make(tmp_path, server, *texts)
    before = dataset(tmp_path / "run")
    asked = len(server.asked)
    for damage in ("done/00001.json", "plan/plan.json"):
        (tmp_path / "run" / damage).unlink()
        make(tmp_path, server, *texts, concurrency=1, timeout_seconds=9.0)
        assert dataset(tmp_path / "run") == before
    assert verify(RunDir.open(tmp_path / "run")).ok
    assert len(server.asked) == asked == 8
    make(tmp_path, server, *texts, "one more")
    assert len(server.asked) == 9
    assert len(rows_of(tmp_path / "run")) == 18


@pytest.mark.parametrize(
    ("texts", "settings", "error"),
    [
        (["another", "a dog"], {}, "prompt 0 .* was 000000-0 'a cat, version 0 at dusk' and is now 000000-0 'another'"),
        (["a cat", "a dog"], {"model": "other"}, "prompts.expand.model was 'writer', is 'other'"),
        (["a cat", "a dog"], {"instruction": "Shorter."}, "prompts.expand.instruction was"),
    ],
)
def test_a_change_is_refused_before_anything_is_asked(
    tmp_path: Path, server: ChatServer, texts: list[str], settings: dict, error: str
) -> None:
    make(tmp_path, server, "a cat", "a dog")
    with pytest.raises(UserError, match=error):
        make(tmp_path, server, *texts, **settings)
    assert len(server.asked) == 2


def test_a_plan_tells_the_requests_and_too_many_are_refused(tmp_path: Path, server: ChatServer) -> None:
    texts = [f"a cat {n}" for n in range(5)]
    sections = {"prompts": {"texts": texts, "draws_per_prompt": 2, "expand": expand(server)}, "output": {"dir": str(tmp_path / "run")}}
    found = summarize(fake_job(tmp_path, **sections))
    assert (found.num_prompts, found.num_draws, found.requests) == (10, 20, 5)
    assert not (tmp_path / "run").exists()
    run(fake_job(tmp_path, **sections), model_loader=LOADER)
    assert summarize(fake_job(tmp_path, **sections)).requests == 0
    asked = len(server.asked)
    with pytest.raises(PromptError, match=r"takes 5 requests to http://.*, more than prompts.expand.max_requests \(4\)"):
        make(tmp_path, server, *texts, out="other", max_requests=4)
    assert (len(server.asked), (tmp_path / "other").exists()) == (asked, False)


def test_no_more_requests_are_open_than_allowed_and_a_wrong_key_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with chatting(seconds=0.1) as server:
        make(tmp_path, server, *(f"a cat {n}" for n in range(9)), concurrency=3)
        assert server.most_at_once == 3
        monkeypatch.setenv("CHAT_KEY", "sk-wrong")
        with pytest.raises(ModelError, match=r"does not let us in \(401\); check the key in CHAT_KEY") as caught:
            make(tmp_path, server, "a dog", out="other")
        assert "sk-wrong" not in str(caught.value)


def test_a_column_with_the_name_of_one_of_ours_is_refused(tmp_path: Path, server: ChatServer) -> None:
    (tmp_path / "p.csv").write_text("prompt,source_prompt\na,b\n")
    with pytest.raises(PromptError, match="has a column 'source_prompt', which"):
        run(
            fake_job(tmp_path, prompts={"file": "p.csv", "texts": None, "expand": expand(server)}),
            out=tmp_path / "run",
            model_loader=LOADER,
        )
    assert server.asked == []


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_stopped_while_it_asks_a_run_asks_for_no_recorded_answer_again(tmp_path: Path, sent: signal.Signals) -> None:
    texts = [f"a cat {n}" for n in range(40)]
    with chatting() as server:
        server.answered_at_once = 14
        prompts = {"texts": texts, "draws_per_prompt": 1, "expand": expand(server, timeout_seconds=60.0)}
        command = [sys.executable, "-m", "tests.run_fake", str(tmp_path / "run"), "local", json.dumps({"prompts": prompts})]
        said = tmp_path / "said"
        with said.open("wb") as file:
            driver = subprocess.Popen(command, cwd=ROOT, stdout=file, env=os.environ)
        deadline = time.monotonic() + 120
        while sum(server.tries.values()) < 18 and time.monotonic() < deadline:  # four at once, so that fourteen are recorded
            time.sleep(0.005)
        driver.send_signal(sent)
        while sent == signal.SIGINT and "finishing" not in said.read_text() and time.monotonic() < deadline:
            time.sleep(0.005)
        server.go.set()
        driver.wait(timeout=60)
        kept = recorded(tmp_path / "run")
        if sent == signal.SIGINT:  # finishes what it has asked
            assert (driver.returncode, set(kept)) == (130, set(server.tries))
        assert 5 < len(kept) < 25
        with (tmp_path / "run/expansions.jsonl").open("a") as file:
            file.write('{"key": "torn')
        server.asked.clear()
        run(fake_job(tmp_path, prompts=prompts), out=tmp_path / "run", model_loader=LOADER)
        assert not {body["messages"][1]["content"] for body in server.asked} & set(kept)
        assert len(server.asked) == 40 - len(kept)
        make(tmp_path, server, *texts, out="undisturbed")
    ended, undisturbed = dataset(tmp_path / "run"), dataset(tmp_path / "undisturbed")
    for made in (ended, undisturbed):
        del made["expansions.jsonl"]  # in the order in which they came
    assert ended == undisturbed


def test_answers_are_kept_in_an_object_store(tmp_path: Path, server: ChatServer) -> None:
    with s3_server():
        out = f"s3://{BUCKET}/run"
        assert make(tmp_path, server, "a cat", "a dog", out=out).accepted == 4
        assert make(tmp_path, server, "a cat", "a dog", "a bird", out=out).accepted == 6
        names = RunDir.open(out).store.list("expansions.jsonl")
        events = RunDir.open(out).store.read_log("events.jsonl")
    assert len(server.asked) == 3
    assert len(names) == 2
    assert events.count(b'"event": "expanded"') == 2


def test_a_lost_record_is_told(tmp_path: Path, server: ChatServer) -> None:
    make(tmp_path, server, "a cat")
    (tmp_path / "run/expansions.jsonl").unlink()
    with pytest.raises(RunFolderError, match=r"expansions.jsonl is missing, .* put it back, or choose another --out"):
        make(tmp_path, server, "a cat")
    assert len(server.asked) == 1
