"""A large file is read once per machine, and again as soon as it is another one."""

import hashlib
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import pytest

from pipeline import digests
from pipeline.digests import file_sha256, git_sha1


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of what is remembered, in a temporary folder of the test's own; every file counts as large and settled."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(digests, "REMEMBERED_BYTES", 1)
    monkeypatch.setattr(digests, "SETTLED_SECONDS", 0.0)
    return tmp_path / "tmp" / f"promptmill-digests-{os.getuid()}"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read."""
    found: list[Path] = []
    read = digests._read

    def record(path: Path) -> str:
        found.append(path)
        return read(path)

    monkeypatch.setattr(digests, "_read", record)
    return found


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    time.sleep(0.02)  # coarse clocks of file systems
    return path


def test_a_large_file_is_read_once(notes: Path, reads: list[Path], tmp_path: Path) -> None:
    file = written(tmp_path / "weights", b"abc")
    wanted = hashlib.sha256(b"abc").hexdigest()
    assert [file_sha256(file), file_sha256(file)] == [wanted, wanted]
    assert reads == [file]
    assert notes.stat().st_mode & 0o777 == 0o700


@pytest.mark.usefixtures("notes")
def test_a_file_that_changed_is_read_again_even_if_its_date_was_set_back(reads: list[Path], tmp_path: Path) -> None:
    file = written(tmp_path / "weights", b"abc")
    before = file.stat()
    file_sha256(file)
    with file.open("r+b") as opened:
        opened.write(b"x")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    time.sleep(0.02)
    assert file_sha256(file) == hashlib.sha256(b"xbc").hexdigest()
    assert len(reads) == 2


@pytest.mark.usefixtures("notes")
def test_a_file_that_has_just_changed_is_not_remembered(reads: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "SETTLED_SECONDS", 60.0)
    file = written(tmp_path / "weights", b"abc")
    file_sha256(file)
    file_sha256(file)
    assert len(reads) == 2


def test_small_files_leave_no_trace(notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "REMEMBERED_BYTES", 4)
    assert file_sha256(written(tmp_path / "config", b"abc")) == hashlib.sha256(b"abc").hexdigest()
    assert not notes.exists()


@pytest.mark.parametrize("theirs", ["mode", "file", "torn"])
def test_what_others_could_have_written_is_not_believed(notes: Path, tmp_path: Path, theirs: str) -> None:
    file = written(tmp_path / "weights", b"abc")
    file_sha256(file)
    (note,) = notes.iterdir()
    if theirs == "torn":
        note.write_text("0" * 63)
    else:
        note.write_text("0" * 64)
        notes.chmod(0o777) if theirs == "mode" else notes.rename(tmp_path / "tmp" / "gone")
    if theirs == "file":
        notes.write_text("")
    assert file_sha256(file) == hashlib.sha256(b"abc").hexdigest()


def _slow_read(path: Path) -> str:
    with (path.parent / "readers").open("a") as file:
        file.write("one\n")
    time.sleep(0.3)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_of_several_processes_one_reads(notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_read", _slow_read)
    file = written(tmp_path / "weights", b"abc")
    workers = [multiprocessing.get_context("fork").Process(target=file_sha256, args=(file,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert (tmp_path / "readers").read_text() == "one\n"
    assert [note.read_text() for note in notes.iterdir()] == [hashlib.sha256(b"abc").hexdigest()]


def test_git_names_bytes_as_git_does(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"what is up, doc?")
    assert git_sha1(tmp_path / "file") == "bd9dbf5aae1a3862dd1526723246b20206e5fc37", "the example of Pro Git, chapter 10.2"
