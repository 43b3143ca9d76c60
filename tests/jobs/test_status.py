"""``status`` counts what is committed, tells running from stopped, and reads a torn event log."""

import io
import json
import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from jobs.history import read_history
from jobs.run_dir import RunDir
from jobs.status import Reason, Status, render, status, to_json
from schemas import layout
from schemas.errors import RunFolderError
from tests.runs import commit, finished_run, plan_run

START = datetime(2026, 1, 2, 3, 0, 0, tzinfo=UTC)


def write_log(run: RunDir, *events: tuple[float, str, dict[str, object]]) -> None:
    """Replace the event log; times in seconds after START."""
    lines = [{"time": (START + timedelta(seconds=at)).isoformat(), "event": event, **facts} for at, event, facts in events]
    run.store.put(layout.EVENTS, "".join(json.dumps(line) + "\n" for line in lines).encode())


def done(at: float, worker: str, draws: int = 4) -> tuple[float, str, dict[str, object]]:
    return at, "shard_done", {"shard_id": 0, "worker": worker, "draws": draws, "failed": 0}


def text_of(found: Status, *, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(render(found))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_finished_run_is_counted_by_verdict_and_reason(tmp_path: Path):
    found = status(finished_run(tmp_path / "run"))
    assert (found.state, found.draws_done, found.draws_planned, found.shards_done, found.shards_planned) == ("finished", 16, 16, 4, 4)
    assert (found.accepted, found.rejected, found.failed) == (10, 4, 2)
    assert Reason(status="failed", reason="out_of_memory", draws=2) in found.reasons
    assert Reason(status="rejected", reason="clip_not_a_number", draws=2) in found.reasons
    assert sum(reason.draws for reason in found.reasons) == 16
    assert found.stage_seconds == {"wait": 2.0, "sample": 8.0, "score": 4.0, "encode": 1.0, "judge": 0.04, "write": 0.96}
    assert found.eta_seconds is None


def test_rates_leave_out_start_up_and_pauses_between_starts(tmp_path: Path):
    run = plan_run(tmp_path / "run")
    commit(run, 0)
    commit(run, 1)
    write_log(
        run,
        (0, "start", {}),
        (30, "worker_ready", {"worker": "a:1", "seconds": 29.0}),
        done(34, "a:1"),
        (35, "drained", {}),
        (5000, "resume", {}),
        (5010, "worker_ready", {"worker": "a:2", "actor": 0}),
        (5010, "worker_ready", {"worker": "a:3", "actor": 1}),
        done(5012, "a:2"),
        done(5014, "a:3"),
    )
    found = status(run, now=START + timedelta(seconds=5020))
    assert found.images_per_second == 1.5, "12 images in 4 + 4 seconds"
    assert found.recent_images_per_second == 2.0
    assert found.state == "running"
    assert found.eta_seconds == 4.0, "8 images at 2 a second"
    assert found.starts == 2
    assert {worker.name: worker.images_per_second for worker in found.workers} == {"a:2": 2.0, "a:3": 1.0}


def test_the_recent_rate_follows_the_last_shards(tmp_path: Path):
    run = plan_run(tmp_path / "run")
    slow_then_fast = [done(10.0 * i, "a:1") for i in range(1, 11)] + [done(100 + i, "a:1") for i in range(1, 21)]
    write_log(run, (0, "start", {}), (0, "worker_ready", {"worker": "a:1"}), *slow_then_fast)
    found = status(run, now=START + timedelta(seconds=130))
    assert found.recent_images_per_second == 4.0
    assert found.images_per_second == 1.0


def test_mishaps_are_counted_and_lost_workers_named(tmp_path: Path):
    run = plan_run(tmp_path / "run")
    write_log(
        run,
        (0, "start", {}),
        (1, "worker_ready", {"worker": "a:1", "actor": 0}),
        (1, "worker_ready", {"worker": "a:2", "actor": 1}),
        (2, "worker_lost", {"actor": 1, "error": "killed"}),
        (2, "shard_retry", {"shard_id": 3, "attempt": 1, "error": "killed"}),
        (3, "shard_abandoned", {"shard_id": 3, "attempts": 3, "error": "killed"}),
        (4, "worker_ready", {"worker": "a:5", "actor": 1}),
        (4, "worker_refused", {"actor": 2, "error": "gpu-7: no such\nfolder"}),
        (5, "worker_hung", {"actor": 1, "seconds": 31.0}),
    )
    found = status(run, now=START)
    assert found.mishaps == {"worker_lost": 1, "shard_retry": 1, "shard_abandoned": 1, "worker_refused": 1, "worker_hung": 1}
    assert {worker.name: worker.lost for worker in found.workers} == {"a:1": False, "a:2": True, "a:5": False}
    assert [(one.kind, one.about, one.why) for one in found.latest_mishaps] == [
        ("worker_lost", "a:2", "killed"),
        ("shard_retry", "shard 3", "killed"),
        ("shard_abandoned", "shard 3", "killed"),
        ("worker_refused", "actor 2", "gpu-7: no such folder"),
        ("worker_hung", "a:5", "31.0 s in one batch"),
    ]
    text = text_of(found, width=160)
    told = "1 worker lost, 1 worker hung, 1 worker without the model's files, 1 shard tried again, 1 shard given up, in 1 start"
    assert told in text
    assert "2026-01-02T03:00:05+00:00  worker hung  a:5: 31.0 s in one batch" in text


def test_only_the_latest_mishaps_are_kept_in_full(tmp_path: Path):
    run = plan_run(tmp_path / "run")
    retries = [(float(n), "shard_retry", {"shard_id": n, "attempt": 1, "error": "killed"}) for n in range(1000)]
    write_log(run, (0, "start", {}), *retries)
    found = status(run, now=START)
    assert found.mishaps == {"shard_retry": 1000}
    assert [one.about for one in found.latest_mishaps] == [f"shard {n}" for n in range(995, 1000)]


def test_the_slowest_shards_are_compared_with_the_usual_one(tmp_path: Path):
    run = finished_run(tmp_path / "run", prompts=16)
    assert status(run).slowest == ()
    for shard_id, times in ((2, 4), (5, 2), (6, 1.2)):
        raw = json.loads(run.store.get(layout.done_file(shard_id)))
        seconds = {stage: value * (1000 if stage == "wait" else times) for stage, value in raw["seconds"].items()}
        run.store.put(layout.done_file(shard_id), json.dumps(raw | {"seconds": seconds, "worker": f"slow:{shard_id}"}).encode())
    found = status(run)
    assert [(one.shard_id, one.worker, one.seconds, one.times_median) for one in found.slowest] == [
        (2, "slow:2", 14.0, 4.0),
        (5, "slow:5", 7.0, 2.0),
    ]
    assert "4.0 x the median" in text_of(found)


def test_torn_and_foreign_lines_of_the_log_are_skipped(tmp_path: Path):
    run = finished_run(tmp_path / "run")
    whole = status(run)
    log = run.store.get(layout.EVENTS)
    foreign = b'\xff\xfe\n[1]\n"x"\n{"time": "soon", "event": "start"}\n{"event": "start"}\n'
    wrong_type = b'{"time": "2026-01-01", "event": "shard_done", "draws": []}\n'
    for size in range(len(log) - 40, len(log)):
        history = read_history(foreign + log[:size])
        assert history.sessions[0].shards == 4
    run.store.put(layout.EVENTS, log + foreign + wrong_type + b'{"time": "2026-01-0')
    assert status(run) == whole


@pytest.mark.parametrize(
    ("facts", "last", "after_seconds", "state"),
    [
        ({}, "worker_ready", 10, "running"),
        ({}, "worker_ready", 100_000, "stopped"),
        ({}, "drained", 10, "stopped"),
        ({}, "finish", 10, "stopped"),
        ({"host": socket.gethostname(), "pid": os.getpid()}, "worker_ready", 100_000, "running"),
        ({"host": socket.gethostname(), "pid": 2**22 + 1}, "worker_ready", 10, "stopped"),
        ({"host": "another-machine", "pid": 2**22 + 1}, "worker_ready", 10, "running"),
    ],
)
def test_running_is_told_from_stopped(tmp_path: Path, facts: dict[str, object], last: str, after_seconds: float, state: str):
    run = plan_run(tmp_path / "run")
    write_log(run, (0, "start", facts), (1, last, {"worker": "a:1"}))
    assert status(run, now=START + timedelta(seconds=after_seconds)).state == state


def test_a_run_without_marker_or_log_has_a_status(tmp_path: Path):
    run = plan_run(tmp_path / "run")
    run.store.delete(layout.EVENTS)
    found = status(run)
    assert (found.state, found.draws_done, found.draws_planned, found.reasons, found.workers) == ("stopped", 0, 16, (), ())
    assert (found.images_per_second, found.recent_images_per_second, found.started_at) == (None, None, None)
    assert "0 of 16 images" in text_of(found)


def test_markers_of_another_plan_are_not_counted(tmp_path: Path):
    run = finished_run(tmp_path / "run")
    raw = json.loads(run.store.get(layout.done_file(1)))
    run.store.put(layout.done_file(1), json.dumps(raw | {"draws_sha256": "0" * 16}).encode())
    assert status(run).shards_done == 3


def without_reasons(run: RunDir, shard_id: int) -> None:
    """The marker of a shard as earlier versions wrote it."""
    raw = json.loads(run.store.get(layout.done_file(shard_id)))
    run.store.put(layout.done_file(shard_id), json.dumps({key: value for key, value in raw.items() if key != "reasons"}).encode())


def test_reasons_are_asked_of_the_table_where_a_marker_does_not_tell(tmp_path: Path):
    run = finished_run(tmp_path / "run")
    told = status(run)
    for shard_id in range(4):
        without_reasons(run, shard_id)
    assert status(run) == told


def test_a_damaged_table_is_a_note_not_a_failure(tmp_path: Path):
    run = finished_run(tmp_path / "run")
    run.store.put(layout.metadata_file(2), b"not parquet")
    assert status(run).note is None, "the markers tell all"
    without_reasons(run, 2)
    found = status(run)
    assert found.reasons == ()
    assert found.note is not None
    assert "promptmill verify" in found.note
    assert found.draws_done == 16


def test_a_run_that_was_never_planned_is_refused(tmp_path: Path):
    run = plan_run(tmp_path / "run")
    run.store.delete(layout.PLAN_INDEX)
    with pytest.raises(RunFolderError, match="not planned"):
        status(run)


def test_json_holds_every_field(tmp_path: Path):
    found = status(finished_run(tmp_path / "run"))
    parsed = json.loads(to_json(found))
    assert list(parsed) == list(Status.__dataclass_fields__)
    assert parsed["reasons"][0].keys() == {"status", "reason", "draws"}


@pytest.mark.parametrize("width", [60, 80, 160])
def test_the_picture_fits_its_width_and_shows_the_counts(tmp_path: Path, width: int):
    text = text_of(status(finished_run(tmp_path / "run")), width=width)
    assert max(map(len, text.splitlines())) <= width
    for part in ("finished", "16 of 16", "accepted", "62.5%", "out of memory", "sample", "host:1"):
        assert part in text
