"""One driver at a time on a run folder: it holds ``lease.json`` and renews it; whoever finds it held is told by whom.

No clock is compared. On the machine of the holder its process is looked up. From elsewhere the lease is watched:
one that is not renewed for ``SILENT_SECONDS`` belongs to a driver that died. A driver that was only asleep notices
at its next renewal and stops. Two drivers could not harm the dataset, which is the same whoever writes it; they
would waste each other's work.
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pipeline.store import Store
from schemas import layout
from schemas.errors import RunFolderError

BEAT_SECONDS = 10.0
SILENT_SECONDS = 45.0
LOOK_SECONDS = 1.0
END_SECONDS = 10.0  # for a renewal that is under way


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A driver. ``machine`` is the boot and the process namespace that ``pid`` counts in, empty where unknown."""

    host: str
    pid: int
    started: str
    machine: str
    since: str
    token: str
    beats: int = 0

    def to_bytes(self) -> bytes:
        """As it stands in ``lease.json``."""
        return json.dumps(asdict(self), indent=1).encode()


class Lease:
    """A lease that is held. ``lost`` is set when another driver has taken it."""

    def __init__(self, store: Store, holder: Holder, stop: threading.Event) -> None:
        self._store = store
        self._holder = holder
        self._stop = stop
        self._ended = threading.Event()
        self.lost = threading.Event()

    def check(self) -> None:
        """Raise RunFolderError if the lease is lost."""
        if self.lost.is_set():
            raise RunFolderError(
                f"{self._store.root}: another driver took this run over, since this one gave no sign of life; leave it to that"
            )

    def keep(self) -> None:
        """Renew the lease until ``end``; sets the driver's ``stop`` when it is lost. A failing store is tried again."""
        while not self._ended.wait(BEAT_SECONDS):
            with suppress(RunFolderError):
                beaten = replace(self._holder, beats=self._holder.beats + 1)
                if not self._store.swap(layout.LEASE, self._holder.to_bytes(), beaten.to_bytes()):
                    self.lost.set()
                    self._stop.set()
                    return
                self._holder = beaten

    def end(self, keeper: threading.Thread) -> None:
        """Give the lease back, if it is still ours, once the logs are published. The threads that do that and that keep the lease
        must not be at the store while the interpreter ends.
        """
        with suppress(RunFolderError):
            self._store.flush()
        self._ended.set()
        keeper.join(timeout=END_SECONDS)
        with suppress(FileNotFoundError):
            if self._store.get(layout.LEASE) == self._holder.to_bytes():
                self._store.delete(layout.LEASE)


@contextmanager
def hold(store: Store, stop: threading.Event, on_message: Callable[[str], None] = lambda text: None) -> Iterator[Lease]:
    """Hold the run folder; ``stop`` is set if the lease is lost. Raises RunFolderError if another driver holds it."""
    lease = Lease(store, _take(store, on_message), stop)
    thread = threading.Thread(target=lease.keep, name="lease", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        with suppress(RunFolderError):  # the store fails: what ended the run says so
            lease.end(thread)


def held(store: Store) -> bool:
    """Whether a driver may be at work on the run folder; one that died on this machine is not, one elsewhere is not waited for."""
    old = _read(store)
    return old is not None and not _died_here(old)


def _take(store: Store, on_message: Callable[[str], None]) -> Holder:
    mine = _here()
    while True:
        old = _read(store)
        if old is not None and not _is_dead(store, old, on_message):
            raise RunFolderError(
                f"{store.root}: {_describe(old)} is at work on it; wait for that to end, or stop it, and run the same command again"
            )
        if store.swap(layout.LEASE, old, mine.to_bytes()):
            if old is not None:
                on_message(f"taking the run over from {_describe(old)}, which has died")
            return mine


def _read(store: Store) -> bytes | None:
    try:
        return store.get(layout.LEASE)
    except FileNotFoundError:
        return None


def _is_dead(store: Store, old: bytes, on_message: Callable[[str], None]) -> bool:
    looked_up = _died_here(old)
    if looked_up is not None:
        return looked_up
    on_message(f"{_describe(old)} was at work here; looking for {SILENT_SECONDS:.0f} s whether it still is")
    began = time.monotonic()
    while time.monotonic() - began < SILENT_SECONDS:
        time.sleep(LOOK_SECONDS)
        if (now := _read(store)) != old:
            return now is None  # given back; else renewed
    return True


def _died_here(old: bytes) -> bool | None:
    """Whether the holder's process on this machine has ended; None for one elsewhere."""
    holder, machine = _parse(old), _machine()
    if holder is None or not machine or holder.machine != machine:
        return None
    return _started(holder.pid) != holder.started


def _parse(data: bytes) -> Holder | None:
    try:
        return Holder(**json.loads(data))
    except (ValueError, TypeError):
        return None


def _describe(data: bytes) -> str:
    holder = _parse(data)
    return f"process {holder.pid} on {holder.host} (since {holder.since})" if holder else "another driver"


def _here() -> Holder:
    return Holder(
        host=socket.gethostname(),
        pid=os.getpid(),
        started=_started(os.getpid()),
        machine=_machine(),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        token=secrets.token_hex(8),
    )


def _machine() -> str:
    """Where process numbers mean the same; empty if the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process of this machine started, in ticks since boot; empty if there is none (proc(5))."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
