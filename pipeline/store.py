"""Where the bytes of a run lie: whole files under names, each visible complete or not at all.

A local folder, or an object store (``pipeline.object_store``) behind the same methods. Publishing is idempotent,
so a zombie worker that writes late can only repeat what is there.
"""

import contextlib
import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from schemas.errors import RunFolderError

if TYPE_CHECKING:
    from pipeline.object_store import ObjectStore

_TEMPORARY = ".tmp"
NO_LOCKS = (errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a file system says that locks no folders, such as NFS."""


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

    def top_level(self) -> list[str]:
        """Names of files and folders directly at the root, hidden ones left out. Raises RunFolderError if it is no folder."""
        ...

    def list(self, folder: str) -> list[str]:
        """Names published in ``folder``, sorted; empty if there is no such folder."""
        ...

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of each name published in ``folder``, without reading them."""
        ...

    def stamps(self, folder: str) -> dict[str, str]:
        """For each name in ``folder`` something that changes whenever it is published anew, without reading it."""
        ...

    def delete(self, name: str) -> None:
        """Remove ``name`` if it is there."""
        ...

    def swap(self, name: str, old: bytes | None, new: bytes) -> bool:
        """Publish ``new`` if ``name`` holds ``old`` (None: is not there) at that moment; whether it did.

        Of several that swap at once, one succeeds.
        """
        ...

    def append(self, name: str, line: str) -> None:
        """Add one line to a log. The only write that is not atomic; readers skip a torn last line."""
        ...

    def read_log(self, name: str) -> bytes:
        """All lines of a log; empty if there is none."""
        ...

    def flush(self) -> None:
        """Publish the lines of logs that are still held back."""
        ...

    def remove_leftovers(self) -> None:
        """Remove unpublished temporary files that a crash left behind."""
        ...

    def reach(self) -> None:
        """Raise RunFolderError, soon, if the place cannot be reached."""
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

    def top_level(self) -> list[str]:
        root = Path(self.root)
        if root.exists() and not root.is_dir():
            raise RunFolderError(f"{root}: is a file; choose another --out")
        return sorted(entry.name for entry in root.iterdir() if not entry.name.startswith(".")) if root.is_dir() else []

    def list(self, folder: str) -> list[str]:
        try:
            entries = sorted(os.listdir(self.path(folder)))
        except FileNotFoundError:
            return []
        return [f"{folder}/{entry}" for entry in entries if not entry.startswith(".")]

    def sizes(self, folder: str) -> dict[str, int]:
        return {name: stat.st_size for name, stat in self._stats(folder).items()}

    def stamps(self, folder: str) -> dict[str, str]:
        return {name: f"{stat.st_mtime_ns} {stat.st_ino} {stat.st_size}" for name, stat in self._stats(folder).items()}

    def _stats(self, folder: str) -> dict[str, os.stat_result]:
        found: dict[str, os.stat_result] = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self.path(folder)) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                        found[f"{folder}/{entry.name}"] = entry.stat()
        return found

    def delete(self, name: str) -> None:
        try:
            self.path(name).unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(self.path(name), error) from error

    def swap(self, name: str, old: bytes | None, new: bytes) -> bool:
        try:
            Path(self.root).mkdir(parents=True, exist_ok=True)
            with _locked(self.root):
                try:
                    found = self.get(name)
                except FileNotFoundError:
                    found = None
                if found != old:
                    return False
                self.put(name, new)
                return True
        except OSError as error:
            raise _unwritable(self.path(name), error) from error

    def append(self, name: str, line: str) -> None:
        target = self.path(name)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise _unwritable(target, error) from error

    def read_log(self, name: str) -> bytes:
        try:
            return self.get(name)
        except FileNotFoundError:
            return b""

    def flush(self) -> None:
        """Every line is in its file at once."""

    def remove_leftovers(self) -> None:
        root = Path(self.root)
        for pattern in (f".*{_TEMPORARY}", f"*/.*{_TEMPORARY}"):
            for temporary in root.glob(pattern):
                self.delete(str(temporary.relative_to(root)))

    def reach(self) -> None:
        """A local path tells when it is used."""


def is_url(root: str | Path) -> bool:
    """Whether a run folder lies in an object store: ``s3://bucket/folder``, ``gs://bucket/folder``."""
    return "://" in str(root)


def open_store(root: str | Path) -> Store:
    """The store of a run folder. Raises RunFolderError if it can be none; the network is not touched yet."""
    return open_objects(str(root)) if is_url(root) else LocalStore(root)


def open_objects(url: str) -> "ObjectStore":
    """The store of a run folder in an object store; its client is imported only then."""
    from pipeline.object_store import ObjectStore

    return ObjectStore(url)


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Among processes that look at the folder. NFS locks no folders: of two that swap within the same milliseconds there, one finds
    the other's data at its next swap.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        yield
    finally:
        os.close(handle)


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
