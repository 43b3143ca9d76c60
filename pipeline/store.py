"""Where the bytes of a run lie: whole files under names, each visible complete or not at all.

A local folder today; an object store behind the same five methods. Publishing is idempotent, so a zombie
worker that writes late can only repeat what is there.
"""

import contextlib
import errno
import os
import tempfile
from pathlib import Path
from typing import Protocol

from schemas.errors import RunFolderError

_TEMPORARY = ".tmp"


class Store(Protocol):
    """Named, immutable blobs. ``/`` separates folders in names."""

    root: str

    def put(self, name: str, data: bytes) -> None:
        """Publish ``data`` under ``name``, atomically, replacing what was there."""
        ...

    def get(self, name: str) -> bytes:
        """The bytes under ``name``. Raises FileNotFoundError."""
        ...

    def exists(self, name: str) -> bool:
        """Whether something is published under ``name``."""
        ...

    def list(self, folder: str) -> list[str]:
        """Names published in ``folder``, sorted; empty if there is no such folder."""
        ...

    def delete(self, name: str) -> None:
        """Remove ``name`` if it is there."""
        ...

    def append(self, name: str, line: str) -> None:
        """Add one line to a log. The only write that is not atomic; readers skip a torn last line."""
        ...

    def remove_leftovers(self) -> None:
        """Remove unpublished temporary files that a crash left behind."""
        ...


class LocalStore:
    """A folder. ``put`` writes a temporary file, fsyncs, renames over the name, fsyncs the folder."""

    def __init__(self, root: str | Path) -> None:
        self.root = str(Path(root).absolute())

    def path(self, name: str) -> Path:
        """Path of ``name`` on this machine."""
        return Path(self.root, name)

    def put(self, name: str, data: bytes) -> None:
        target = self.path(name)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _write_and_rename(target, data)
        except OSError as error:
            raise _unwritable(target, error) from error

    def get(self, name: str) -> bytes:
        try:
            return self.path(name).read_bytes()
        except NotADirectoryError as error:
            raise FileNotFoundError(str(error)) from None

    def exists(self, name: str) -> bool:
        return self.path(name).exists()

    def list(self, folder: str) -> list[str]:
        try:
            entries = sorted(os.listdir(self.path(folder)))
        except FileNotFoundError:
            return []
        return [f"{folder}/{entry}" for entry in entries if not entry.startswith(".")]

    def delete(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)

    def append(self, name: str, line: str) -> None:
        target = self.path(name)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise _unwritable(target, error) from error

    def remove_leftovers(self) -> None:
        for temporary in Path(self.root).glob(f"*/.*{_TEMPORARY}"):
            temporary.unlink(missing_ok=True)


def open_store(root: str | Path) -> LocalStore:
    """The store of a run folder."""
    if "://" in str(root):
        scheme = str(root).split("://", 1)[0]
        raise RunFolderError(f"{root}: {scheme}:// run folders are not supported yet; give a local path")
    return LocalStore(root)


def _write_and_rename(target: Path, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=_TEMPORARY, dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _unwritable(target: Path, error: OSError) -> RunFolderError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunFolderError(f"{target}: the disk is full; nothing is lost: free some space and run the same command again")
    return RunFolderError(f"{target}: cannot be written: {error.strerror}; choose another --out or mend its permissions")
