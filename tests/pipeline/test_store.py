"""A name shows a whole file or nothing; errors of the disk become one line."""

import errno
import os
from pathlib import Path

import pytest

from pipeline.store import LocalStore, open_store
from schemas.errors import RunFolderError


def test_a_put_replaces_the_whole_file(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "run")
    store.put("a/b.bin", b"one")
    store.put("a/b.bin", b"two")
    assert store.get("a/b.bin") == b"two"
    assert store.list("a") == ["a/b.bin"]
    assert store.list("none") == []


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_crash_before_the_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    store = LocalStore(tmp_path)
    store.put("a/b.bin", b"old")

    def fail(*args: object) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(RunFolderError, match="cannot be written"):
        store.put("a/b.bin", b"new")
    assert store.get("a/b.bin") == b"old"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.bin"]


def test_a_full_disk_says_that_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunFolderError, match="the disk is full; nothing is lost: free some space and run the same command again"):
        LocalStore(tmp_path).put("x", b"1")


def test_leftovers_of_a_crash_are_invisible_and_can_be_removed(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("images/0.parquet", b"x")
    (tmp_path / "images" / ".1.parquet.abc.tmp").write_bytes(b"half")
    assert store.list("images") == ["images/0.parquet"]
    store.remove_leftovers()
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["0.parquet"]


def test_a_url_is_refused_by_name() -> None:
    with pytest.raises(RunFolderError, match="s3:// run folders are not supported"):
        open_store("s3://bucket/run")
