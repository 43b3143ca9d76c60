"""sha256 of files. That of a large one is computed once per machine: several workers load the same tens of gigabytes.

It is remembered in a folder of this user's own below the machine's temporary folder, which a restart empties, under the
file's device, inode, size and times of change; the last of these no program can set back. A disk that loses bits after
the file was read is not noticed.
"""

import contextlib
import fcntl
import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

REMEMBERED_BYTES = 16 * 1024**2  # from this size on; smaller files take milliseconds
SETTLED_SECONDS = 2.0  # a file that changed later than that might change again without another time of change


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes. Of several processes that ask for a large one at once, one reads it."""
    found = path.stat()
    if found.st_size < REMEMBERED_BYTES:
        return _read(path)
    with _note(found) as note:
        known = note.read() if note else ""
        if len(known) == 64:
            return known
        digest = _read(path)
        if note and _key(path.stat()) == _key(found) and time.time() - found.st_ctime > SETTLED_SECONDS:
            note.seek(0)
            note.truncate()
            note.write(digest)
        return digest


def git_sha1(path: Path) -> str:
    """Hexadecimal name that git gives to a file's bytes (https://git-scm.com/book/en/v2/Git-Internals-Git-Objects)."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _key(found: os.stat_result) -> str:
    facts = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return hashlib.sha256(repr(facts).encode()).hexdigest()


@contextlib.contextmanager
def _note(found: os.stat_result) -> Iterator[IO[str] | None]:
    """The file that remembers, held by one process at a time; None where there can be none that others could not have written."""
    folder = Path(tempfile.gettempdir(), f"promptmill-digests-{os.getuid()}")
    with contextlib.ExitStack() as stack:
        note = None
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
            mine = folder.lstat()
            if stat.S_ISDIR(mine.st_mode) and mine.st_uid == os.getuid() and not mine.st_mode & 0o077:
                opened = stack.enter_context((folder / _key(found)).open("a+", encoding="ascii"))
                fcntl.flock(opened, fcntl.LOCK_EX)
                opened.seek(0)
                note = opened
        yield note
