"""Two drivers on one output: the second is refused and told by whom; a dead holder is replaced; clocks play no part."""

import errno
import fcntl
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs import lease
from jobs.run_dir import RunDir
from pipeline.store import Store, open_store
from schemas import layout
from schemas.errors import RunFolderError
from tests.conftest import REPOSITORY
from tests.fakes import fake_job
from tests.jobs.test_run import make
from tests.s3 import BUCKET, s3_server

ELSEWHERE = {"host": "another-host", "machine": "boot-of-another-host pid:[1]"}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "s3":
        request.getfixturevalue("endpoint")
        return open_store(f"s3://{BUCKET}/{request.node.originalname}/run")
    return open_store(tmp_path / "run")


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"BEAT_SECONDS": 0.1, "SILENT_SECONDS": 0.8, "LOOK_SECONDS": 0.05}.items():
        monkeypatch.setattr(lease, name, seconds)


def left_behind(store: Store, **changes) -> bytes:
    """A lease as another driver may have left it."""
    data = replace(lease._here(), **changes).to_bytes()
    store.put(layout.LEASE, data)
    return data


def held(store: Store, said: list[str] | None = None):
    return lease.hold(store, threading.Event(), (said if said is not None else []).append)


def test_the_second_driver_is_refused_and_told_by_whom(store: Store) -> None:
    with held(store):
        mine = json.loads(store.get(layout.LEASE))
        with pytest.raises(RunFolderError, match=rf"process {mine['pid']} on {mine['host']} \(since 20.*\) is at work on it"), held(store):
            pass
        assert json.loads(store.get(layout.LEASE))["token"] == mine["token"]
    assert not store.exists(layout.LEASE)
    with held(store):
        pass


def test_a_holder_that_died_on_this_machine_is_replaced_at_once(store: Store) -> None:
    child = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    left_behind(store, pid=int(child.stdout))
    said: list[str] = []
    began = time.monotonic()
    with held(store, said):
        assert time.monotonic() - began < lease.SILENT_SECONDS
    assert "which has died" in said[0]


def test_a_process_number_that_was_given_out_again_is_not_the_holder(store: Store) -> None:
    left_behind(store, started="12345")
    with held(store):
        pass


def test_a_holder_elsewhere_that_renews_its_lease_is_respected(store: Store, hurried: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SILENT_SECONDS", 60.0)  # this process may stand still; the first renewal ends the wait
    holder = replace(lease._here(), **ELSEWHERE)
    left_behind(store, **ELSEWHERE)
    ended = threading.Event()

    def beat() -> None:
        for number in range(1, 1000):
            if ended.wait(0.2):
                return
            store.put(layout.LEASE, replace(holder, beats=number).to_bytes())

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(RunFolderError, match="on another-host"), held(store):
            pass
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("since", ["1999-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00"], ids=["long ago", "clock moved back"])
def test_a_silent_holder_elsewhere_is_replaced_whatever_the_clocks_say(store: Store, hurried: None, since: str) -> None:
    left_behind(store, since=since, **ELSEWHERE)
    said: list[str] = []
    began = time.monotonic()
    with held(store, said):
        assert time.monotonic() - began >= lease.SILENT_SECONDS
    assert "looking for" in said[0]


def test_a_damaged_lease_is_watched_like_a_silent_one(store: Store, hurried: None) -> None:
    store.put(layout.LEASE, b"{")
    with held(store):
        pass


def test_a_driver_that_slept_through_its_lease_stops_and_leaves_the_other_alone(store: Store, hurried: None) -> None:
    stop = threading.Event()
    with lease.hold(store, stop) as mine:
        other = left_behind(store, **ELSEWHERE)
        assert stop.wait(60)
        with pytest.raises(RunFolderError, match="another driver took this run over"):
            mine.check()
    assert store.get(layout.LEASE) == other


def test_a_lease_is_renewed_while_it_is_held(store: Store, hurried: None) -> None:
    with held(store):
        deadline = time.monotonic() + 60
        while json.loads(store.get(layout.LEASE))["beats"] < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_no_thread_is_at_the_store_once_the_lease_is_given_back(store: Store, hurried: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is inside a native library while the interpreter ends takes the process with it."""
    at_the_store, swap = threading.Event(), type(store).swap

    def slowly(*arguments: Any) -> bool:
        if threading.current_thread().name == "lease":
            at_the_store.set()
            time.sleep(0.3)
        return swap(*arguments)

    monkeypatch.setattr(type(store), "swap", slowly)
    with held(store):
        assert at_the_store.wait(timeout=60)
    assert not [thread for thread in threading.enumerate() if thread.name == "lease"]
    assert not store.exists(layout.LEASE)


def test_a_folder_that_cannot_be_locked_is_held_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(handle: int, operation: int) -> None:
        raise OSError(errno.EBADF, "as NFS says of a folder")

    monkeypatch.setattr(fcntl, "flock", refused)
    store = open_store(tmp_path / "run")
    with held(store), pytest.raises(RunFolderError, match="is at work on it"), held(store):
        pass
    assert not store.exists(layout.LEASE)


def test_two_runs_at_once(tmp_path: Path) -> None:
    out = tmp_path / "run"
    code = f"""
import threading, sys
from jobs import lease
from pipeline.store import open_store
with lease.hold(open_store({str(out)!r}), threading.Event()):
    print("held", flush=True)
    sys.stdin.read()
"""
    other = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(RunFolderError, match=rf"process {other.pid} on .* is at work on it; wait for that to end, or stop it"):
        make(fake_job(tmp_path), out)
    assert [path.name for path in out.iterdir()] == [layout.LEASE]
    other.kill()
    other.communicate()
    assert make(fake_job(tmp_path), out).exit_code == 0
    assert not RunDir.open(out).store.exists(layout.LEASE)
