"""What every store promises, and what each must do when its disk or its server fails."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import object_store
from pipeline.store import LocalStore, Store, open_store
from schemas.errors import RunFolderError
from tests.conftest import REPOSITORY
from tests.s3 import BUCKET, proxy, s3_server


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def url(endpoint: str, request: pytest.FixtureRequest) -> str:
    """A prefix of its own for each test."""
    return f"s3://{BUCKET}/{request.node.name.replace('[', '-').replace(']', '')}/run"


class TestEveryStore:
    @pytest.fixture(params=["local", "s3"])
    def root(self, request: pytest.FixtureRequest, tmp_path: Path) -> str:
        return str(tmp_path / "run") if request.param == "local" else request.getfixturevalue("url")

    @pytest.fixture
    def store(self, root: str) -> Store:
        store = open_store(root)
        store.reach()
        return store

    def test_a_put_replaces_the_whole_blob(self, store: Store) -> None:
        store.put("a/b.bin", b"one")
        store.put("a/b.bin", b"two, longer")
        assert store.get("a/b.bin") == b"two, longer"
        assert store.exists("a/b.bin")

    def test_a_name_that_was_never_published_is_not_found(self, store: Store) -> None:
        assert not store.exists("a/b.bin")
        with pytest.raises(FileNotFoundError):
            store.get("a/b.bin")
        store.delete("a/b.bin")

    def test_a_folder_lists_its_own_names_in_order(self, store: Store) -> None:
        assert store.list("a") == []
        for name in ("a/2", "a/10", "ab/3", "a/sub/4"):
            store.put(name, b"12345")
        assert [name for name in store.list("a") if name != "a/sub"] == ["a/10", "a/2"]
        assert store.sizes("ab") == {"ab/3": 5}
        assert store.top_level() == ["a", "ab"]

    def test_more_names_than_one_page(self, store: Store) -> None:
        for number in range(30):
            store.put(f"done/{number:05d}.json", b"{}")
        assert len(store.list("done")) == 30

    def test_a_stamp_changes_when_a_name_is_published_anew_and_only_then(self, store: Store) -> None:
        assert store.stamps("done") == {}
        store.put("done/1", b"one")
        store.put("done/2", b"two")
        before = store.stamps("done")
        store.put("done/2", b"TWO")
        after = store.stamps("done")
        assert after == store.stamps("done")
        assert [name for name in ("done/1", "done/2") if after[name] != before[name]] == ["done/2"]

    def test_what_is_deleted_is_gone(self, store: Store) -> None:
        store.put("a/b", b"x")
        store.delete("a/b")
        assert not store.exists("a/b")

    def test_a_swap_needs_what_was_expected(self, store: Store) -> None:
        assert store.swap("lease", None, b"one")
        assert not store.swap("lease", None, b"two")
        assert not store.swap("lease", b"other", b"two")
        assert store.swap("lease", b"one", b"two")
        assert store.get("lease") == b"two"
        store.delete("lease")
        assert not store.swap("lease", b"two", b"three")
        assert not store.exists("lease")

    def test_of_many_that_swap_at_once_one_succeeds(self, root: str) -> None:
        won: list[int] = []
        gate = threading.Barrier(6)

        def swap(number: int) -> None:
            store = open_store(root)
            gate.wait()
            if store.swap("lease", None, f"{number}".encode()):
                won.append(number)

        threads = [threading.Thread(target=swap, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert open_store(root).get("lease") == str(won[0]).encode()

    def test_a_log_keeps_its_lines_in_order_over_restarts(self, store: Store, root: str) -> None:
        assert store.read_log("events.jsonl") == b""
        for line in ("1", "2", "3"):
            store.append("events.jsonl", line)
        store.flush()
        again = open_store(root)
        again.append("events.jsonl", "4")
        again.flush()
        assert open_store(root).read_log("events.jsonl") == b"1\n2\n3\n4\n"


class TestLocal:
    @pytest.mark.parametrize("step", ["fsync", "replace"])
    def test_a_crash_before_the_rename_leaves_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
        store = LocalStore(tmp_path)
        store.put("a/b.bin", b"old")

        def fail(*args: object) -> None:
            raise OSError(errno.EIO, "input/output error")

        monkeypatch.setattr(os, step, fail)
        with pytest.raises(RunFolderError, match="cannot be written"):
            store.put("a/b.bin", b"new")
        assert store.get("a/b.bin") == b"old"
        assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.bin"]

    def test_a_full_disk_says_that_nothing_is_lost(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*args: object) -> None:
            raise OSError(errno.ENOSPC, "no space left on device")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(RunFolderError, match="the disk is full; nothing is lost: free some space and run the same command again"):
            LocalStore(tmp_path).put("x", b"1")

    def test_leftovers_of_a_crash_are_invisible_and_can_be_removed(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path)
        store.put("images/0.parquet", b"x")
        (tmp_path / "images" / ".1.parquet.abc.tmp").write_bytes(b"half")
        (tmp_path / ".job.yaml.abc.tmp").write_bytes(b"half")
        assert store.list("images") == ["images/0.parquet"]
        assert store.sizes("images") == {"images/0.parquet": 1}
        store.remove_leftovers()
        assert [path.name for path in (tmp_path / "images").iterdir()] == ["0.parquet"]
        assert [path.name for path in tmp_path.iterdir()] == ["images"]


class TestFaultsOfS3:
    @pytest.fixture
    def impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(object_store, "REQUEST_SECONDS", 1)
        monkeypatch.setattr(object_store, "PATIENCE_SECONDS", 8)

    @pytest.mark.parametrize("what", ["500", "late 500", "hang", "cut"])
    def test_requests_that_fail_are_made_again(
        self, endpoint: str, url: str, monkeypatch: pytest.MonkeyPatch, impatient: None, what: str
    ) -> None:
        with proxy(endpoint, lambda method, path, number: what if number in (0, 2, 4) else None) as faulty:
            monkeypatch.setenv("AWS_ENDPOINT_URL", faulty)
            store = open_store(url)
            store.put("a/b", b"data" * 100)
            assert store.get("a/b") == b"data" * 100
            assert store.sizes("a") == {"a/b": 400}

    def test_a_swap_whose_answer_was_lost_knows_that_it_won(
        self, endpoint: str, url: str, monkeypatch: pytest.MonkeyPatch, impatient: None
    ) -> None:
        with proxy(endpoint, lambda method, path, number: "late 500" if method == "PUT" and number == 0 else None) as faulty:
            monkeypatch.setenv("AWS_ENDPOINT_URL", faulty)
            assert open_store(url).swap("lease", None, b"mine")
            assert not open_store(url).swap("lease", None, b"another's")

    def test_a_server_that_stays_broken_is_named_in_one_line(
        self, endpoint: str, url: str, monkeypatch: pytest.MonkeyPatch, impatient: None
    ) -> None:
        monkeypatch.setattr(object_store, "PATIENCE_SECONDS", 2)
        with proxy(endpoint, lambda *request: "500") as faulty:
            monkeypatch.setenv("AWS_ENDPOINT_URL", faulty)
            with pytest.raises(RunFolderError, match=r"does not do as asked \(500 Internal Server Error.*nothing is lost") as caught:
                open_store(url).put("a/b", b"x")
        assert "\n" not in str(caught.value)

    def test_a_client_killed_in_mid_upload_publishes_nothing(self, endpoint: str, url: str) -> None:
        open_store(url).put("images/00000.parquet", b"old")
        begun = threading.Event()

        def fault(method: str, path: str, number: int) -> str | None:
            if method == "PUT":
                begun.set()
                return "slow"
            return None

        code = f"from pipeline.store import open_store; open_store({url!r}).put('images/00000.parquet', b'x' * 4_000_000)"
        with proxy(endpoint, fault) as slow:
            client = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, env=os.environ | {"AWS_ENDPOINT_URL": slow})
            assert begun.wait(60)
            time.sleep(0.5)
            client.send_signal(signal.SIGKILL)
            client.wait()
            time.sleep(0.2)
        store = open_store(url)
        assert store.get("images/00000.parquet") == b"old"
        assert store.list("images") == ["images/00000.parquet"]


REFUSED = {
    "ftp://bucket/run": "a local path, or a URL that begins with s3:// or gs://",
    "s3://bucket": "must name a bucket and a folder in it",
    "s3://key:secret@bucket/run": "credentials do not belong into a URL",
}


@pytest.mark.parametrize(("url", "expected"), REFUSED.items())
def test_a_url_that_can_be_no_run_folder_is_refused(url: str, expected: str) -> None:
    with pytest.raises(RunFolderError, match=expected) as caught:
        open_store(url)
    assert "secret" not in str(caught.value)


def test_a_bucket_that_does_not_exist_is_named(endpoint: str) -> None:
    with pytest.raises(RunFolderError, match="s3://nowhere/run: there is no such bucket; make it first"):
        open_store("s3://nowhere/run").reach()


def test_an_endpoint_where_nothing_listens_is_named_soon(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(RunFolderError, match=r"http://127.0.0.1:9 does not do as asked .*; look at AWS_ENDPOINT_URL"):
        open_store(f"s3://{BUCKET}/run").reach()
    assert time.monotonic() - started < object_store.PATIENCE_SECONDS / 2


def test_denied_access_is_told_with_what_is_needed(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    from tests.s3 import denying

    with denying() as closed:
        monkeypatch.setenv("AWS_ENDPOINT_URL", closed)
        with pytest.raises(RunFolderError, match=r"access is denied \(AccessDenied\); the credentials in the environment must allow"):
            open_store(f"s3://{BUCKET}/run").reach()
