"""The CSV of labels: a line for each, on the disk before the next image is shown. Whatever kills the process, what was said stays."""

import codecs
import errno
import fcntl
import io
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from jobs.calibrate import GOOD, read_labels
from pipeline.store import NO_LOCKS
from schemas.errors import ConfigError

HEADER = b"sample_id,good"


class Labels:
    """``good`` by sample id. For any number of threads, and one process at a time."""

    def __init__(self, path: Path) -> None:
        """Take up a file that is there, or begin one. Raises ConfigError if it holds something else, or cannot be written."""
        self._path, self._lock = path, threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _locked(path)
        except OSError as error:
            raise self._unwritable(error) from None
        try:
            self._begin()
            self.good = read_labels(path)
        except OSError as error:
            self._file.close()
            raise self._unwritable(error) from None
        except ConfigError:
            self._file.close()
            raise

    def set(self, sample_id: str, good: bool) -> None:
        """Record a label: a further line, or the file anew where another one is taken back. Raises ConfigError."""
        with self._lock:
            before = self.good.get(sample_id)
            if before == good:
                return
            try:
                if before is None:
                    self._write(f"{sample_id},{int(good)}")
                else:
                    self._replace(self.good | {sample_id: good})
            except OSError as error:
                raise self._unwritable(error) from None
            self.good = self.good | {sample_id: good}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def _begin(self) -> None:
        """Write the first line where there is none, and end the last one: what is whole gets its newline, what a kill tore goes."""
        data = self._path.read_bytes()
        first, _, rest = data.removeprefix(codecs.BOM_UTF8).partition(b"\n")
        if not rest and HEADER.startswith(first) and first != HEADER:
            self._file.truncate(0)
            self._write(HEADER.decode())
        elif first.rstrip(b"\r") != HEADER:
            raise ConfigError(f"{self._path}: is no file of labels (its first line is not {HEADER.decode()}); choose another --out")
        elif not data.endswith(b"\n"):
            kept, _, last = data.rpartition(b"\n")
            if not kept or last.decode("utf-8", "replace").partition(",")[2].strip().lower() in GOOD:
                self._file.write(b"\n")
            else:
                self._file.truncate(len(kept) + 1)

    def _unwritable(self, error: OSError) -> ConfigError:
        return ConfigError(f"{self._path}: cannot be written: {error.strerror}; choose another --out or mend its permissions")

    def _write(self, line: str) -> None:
        data, end = f"{line}\n".encode(), os.fstat(self._file.fileno()).st_size
        if self._file.write(data) != len(data):  # one call, so that a line is there or is not, but on a full disk
            self._file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(self._file.fileno())

    def _replace(self, good: dict[str, bool]) -> None:
        lines = [HEADER.decode(), *(f"{name},{int(value)}" for name, value in good.items())]
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
            file.flush()
            os.fsync(file.fileno())
        fresh = _locked(temporary)
        temporary.replace(self._path)
        self._file.close()
        self._file = fresh


def _locked(path: Path) -> io.FileIO:
    """Open for appending, by nobody else."""
    file = io.FileIO(path, "ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ConfigError(f"{path}: another 'promptmill label' writes it; end that, or choose another --out") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            file.close()
            raise
    return file
