"""Fails every I/O operation of a run, one after the other, resumes, and compares: ``python -m tests.crash_points PLACE HOW``.

A run of one shard is started in a forked process that dies (``kill``: SIGKILL) or sees an error (``error``) at its
i-th operation; a second process takes it up; then the dataset must be the undisturbed one, byte for byte, and ``verify``
must find nothing. This for i = 1, 2, ... until a run gets through. Prints one JSON object.

On a disk an operation is each of mkdir, mkstemp, write (also half-way), fsync, rename, unlink, append (also half-way);
on S3 each request; its answer may be lost too. With ``--broken NAME`` the code is spoiled first: the harness must notice.
"""

import contextlib
import errno
import hashlib
import importlib
import itertools
import json
import logging
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import GenericError

import jobs.run_dir
import pipeline.worker
from jobs.run import run
from jobs.run_dir import RunDir
from jobs.verify import verify
from pipeline import shard, store, write
from pipeline.store import is_url, open_store
from schemas import layout
from schemas.errors import UserError
from tests.fakes import LOADER, fake_job

TEXTS = ["picture 0", "RAISE", "picture 2", "BLANK", "picture 4", "picture 5"]
REFUSED = 2
FOLDERS = (layout.PLAN, layout.METADATA, layout.IMAGES, layout.FAILED, layout.PARTIAL)


class Operations:
    """Counts operations and lets one fail."""

    def __init__(self, fail_at: int | None, how: str) -> None:
        self.count = 0
        self.fail_at = fail_at
        self.how = how

    def point(self, error: type[Exception]) -> None:
        """One operation is about to be done."""
        self.count += 1
        if self.count == self.fail_at:
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.EIO, "made to fail") if error is OSError else error("made to fail")

    def before(self, owner: Any, name: str) -> None:
        """Fail before ``owner.name`` does anything."""
        original = getattr(owner, name)

        def failing(*arguments: Any, **options: Any) -> Any:
            self.point(OSError)
            return original(*arguments, **options)

        setattr(owner, name, failing)

    def around(self, owner: Any, name: str) -> None:
        """Fail before or after a request: after it, the answer is lost."""
        original = getattr(owner, name)

        def failing(*arguments: Any, **options: Any) -> Any:
            self.point(GenericError)
            answer = original(*arguments, **options)
            if self.how == "error":  # a kill here is one before the next operation
                self.point(GenericError)
            return answer

        setattr(owner, name, failing)


class HalfWritten:
    """A file whose writes may end in the middle."""

    def __init__(self, file: Any, operations: Operations) -> None:
        self.file = file
        self.operations = operations

    def write(self, data: Any) -> None:
        self.operations.point(OSError)
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        self.operations.point(OSError)
        self.file.write(data[len(data) // 2 :])

    def __enter__(self) -> "HalfWritten":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def watch(operations: Operations, *, on_disk: bool) -> None:
    """Put a point before each operation of the store."""
    if not on_disk:
        for name in ("put", "get", "head", "delete", "list", "list_with_delimiter"):
            operations.around(obstore, name)
        return
    for owner, name in ((tempfile, "mkstemp"), (os, "fsync"), (os, "replace"), (Path, "mkdir"), (Path, "unlink")):
        operations.before(owner, name)
    for owner, name in ((os, "fdopen"), (Path, "open")):
        original = getattr(owner, name)
        setattr(owner, name, lambda *a, _open=original, **k: _half(_open(*a, **k), operations))


def _half(file: Any, operations: Operations) -> Any:
    return HalfWritten(file, operations) if file.writable() else file


def spoil(name: str | None) -> None:
    """Publish markers before their files, and trust them at the resume, as careless changes might."""
    if name is None:
        return

    class Careless:
        """Publishes the marker when the first file of a shard is published, before the others."""

        def __init__(self, inner: store.Store) -> None:
            self.inner = inner
            self.held: list[tuple[str, bytes]] = []

        def put(self, at: str, data: bytes) -> None:
            self.held.append((at, data))
            if at.startswith(layout.DONE):
                for each in reversed(self.held):
                    self.inner.put(*each)

        def delete(self, at: str) -> None:
            self.inner.delete(at)

    commit = write.commit_shard
    assert name == "marker first"
    shard.commit_shard = lambda inner, *a, **k: commit(Careless(inner), *a, **k)  # type: ignore[attr-defined]
    jobs.run_dir._problem = lambda marker, index, sizes: None if marker else "is no marker"


def make(root: str) -> int:
    """One start of the job; its exit status."""
    job = fake_job(Path("/nowhere"), prompts={"texts": TEXTS, "draws_per_prompt": 1}, output={"shard_size": 6})
    return run(job, out=root, model_loader=LOADER).exit_code


def digest(root: str) -> str:
    """Of all files that must not differ; an error if the run is not whole."""
    found = open_store(root)
    names = [name for name in found.top_level() if name not in (*FOLDERS, layout.DONE, layout.EVENTS, layout.JOB)]
    names += [name for folder in FOLDERS for name in found.list(folder)]
    problems = verify(RunDir.open(root)).problems
    assert not problems, str(problems[0])
    return json.dumps({name: hashlib.sha256(found.get(name)).hexdigest() for name in names})


def in_child(action: Callable[[], Any]) -> tuple[int, Any]:
    """Do something in a process of its own: (exit status, or minus the signal; what it returned)."""
    read, written = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            answer = json.dumps(action())
            os.write(written, answer.encode())
            code = 0
        except UserError as error:
            os.write(written, json.dumps(str(error)).encode())
            code = REFUSED
        except BaseException:
            os.write(written, json.dumps(traceback.format_exc(limit=-4)).encode())
        finally:
            os._exit(code)
    os.close(written)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), json.loads(said) if said else None


def main() -> None:
    place, how = sys.argv[1], sys.argv[2]
    spoil(sys.argv[4] if "--broken" in sys.argv else None)
    logging.disable(logging.CRITICAL)
    pipeline.worker.SHARDS_AT_ONCE = 1
    code, said = in_child(lambda: make(f"{place}/whole") and [digest(f"{place}/whole"), sorted(sys.modules)])
    assert code == 0, said
    reference, modules = said
    for module in modules:  # once, not in each process
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    failures: list[str] = []
    for at in itertools.count(1):
        root = f"{place}/{at}"

        def disturbed(at: int = at, root: str = root) -> int:
            operations = Operations(at, how)
            watch(operations, on_disk=not is_url(root))
            make(root)
            return operations.count

        first = in_child(disturbed)
        if first[0] == 0 and first[1] < at:
            print(json.dumps({"points": at - 1, "failures": failures}))
            return
        if how == "error" and first[0] not in (0, REFUSED):
            failures.append(f"operation {at}: is not told in one line: {first[1]}")
        second = in_child(lambda root=root: make(root) and digest(root))
        if second != (0, reference):
            failures.append(f"operation {at}: {first[1]}: then {second}")
            if "--broken" in sys.argv:
                print(json.dumps({"points": at, "failures": failures}))
                return


if __name__ == "__main__":
    main()
