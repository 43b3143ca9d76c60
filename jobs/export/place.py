"""Where an export is written until it is whole: a hidden folder beside the target, held while it is written, published by one rename.

A killed export leaves its hidden folder behind; the next export to the same target takes it over, and goes on with what is finished in it
(see ``parts``). What is published is on the disk: every file and folder is fsynced before the rename.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jobs.export.parts import forget
from pipeline.store import NO_LOCKS, is_url
from schemas.errors import RunFolderError

HIDDEN = ".promptmill-export"
FILES_AT_A_TIME = 10_000


@contextlib.contextmanager
def new_folder(target: str | Path) -> Iterator[Path]:
    """A folder to write to that becomes ``target`` at the end, is removed after an error, and left after Ctrl-C. Raises RunFolderError."""
    if is_url(str(target)):
        raise RunFolderError(f"{target}: an export goes to a folder of this machine; copy it to the object store when it is done")
    place = Path(target).absolute()
    if place.exists() or place.is_symlink():
        raise RunFolderError(f"{target}: is there already; choose another target, or delete it")
    try:
        folder, handle = _hold(place.with_name(f".{place.name}{HIDDEN}"), target)
    except OSError as error:
        raise RunFolderError(f"{target}: cannot be written: {error.strerror}; choose another target") from None
    try:
        yield folder
        _sync(folder)
        forget(folder)
        _sync_one(folder)
        os.rename(folder, place)
        _sync_one(place.parent)
    except BaseException as error:
        if not (isinstance(error, KeyboardInterrupt) and folder.name.endswith(HIDDEN)):
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise RunFolderError(f"{target}: cannot be written: {error.strerror}; nothing was published") from None
        raise
    finally:
        os.close(handle)


def _hold(folder: Path, target: str | Path) -> tuple[Path, int]:
    """Make the folder, or take the one that a killed export left; locked until the handle is closed, by death too.

    Where folders cannot be locked (NFS) it is one of a name that no other export has, and stays behind if this one is killed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not (folder.exists() and os.path.samestat(os.fstat(handle), folder.stat())):
            raise BlockingIOError  # the other one published it, or gave up, while the lock was asked for
    except BlockingIOError:
        os.close(handle)
        raise RunFolderError(f"{target}: another export is writing it; wait for it, or choose another target") from None
    except OSError as error:
        os.close(handle)
        if error.errno not in NO_LOCKS:
            raise
        with contextlib.suppress(OSError):
            folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
        folder.chmod(0o755)
        return folder, os.open(folder, os.O_RDONLY)
    return folder, handle


def _sync(folder: Path) -> None:
    """Everything below a folder to the disk, the folder last; in threads, since a disk commits many files as fast as one."""
    with ThreadPoolExecutor(8, thread_name_prefix="fsync") as pool:
        for root, _, files in os.walk(folder, topdown=False):
            for start in range(0, len(files), FILES_AT_A_TIME):
                list(pool.map(lambda name, root=root: _sync_one(Path(root, name)), files[start : start + FILES_AT_A_TIME]))
            _sync_one(Path(root))


def _sync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
