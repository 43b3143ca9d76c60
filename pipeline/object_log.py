"""A log in an object store. Nothing can be appended to there: lines are gathered for a moment and published as numbered objects
below the log's name.

That is done by a thread of its own, so that a slow store does not hold up whoever writes. It lives while there is something to
publish: after ``flush`` there is none, and none is at the store while the interpreter ends.
"""

import secrets
import threading
import time
from typing import Protocol

HOLD_BACK_SECONDS = 2.0  # lines that come within this time are published together
SEGMENT_BYTES = 256 * 1024  # of one object, before a new one is begun
WAITING_BYTES = 4 * 1024**2  # before a store that is as slow as that holds up the writer after all


class Objects(Protocol):
    """What a log needs of its store."""

    def put(self, name: str, data: bytes) -> None: ...

    def list(self, folder: str) -> list[str]: ...


class ObjectLog:
    """Lines below ``name``, in order. An error of the store is raised by whatever is called next, from then on."""

    def __init__(self, name: str, store: Objects) -> None:
        self._name, self._store = name, store
        self._segment, self._published = "", bytearray()
        self._not_before = 0.0
        self._changed = threading.Condition()  # guards what follows
        self._waiting = bytearray()
        self._hurry = False
        self._error: Exception | None = None
        self._publisher: threading.Thread | None = None

    def append(self, line: str) -> None:
        """Add a line, which will be published soon."""
        with self._changed:
            self._changed.wait_for(lambda: self._error or len(self._waiting) < WAITING_BYTES)
            self._raise()
            self._waiting += line.encode() + b"\n"
            if self._publisher is None:
                self._publisher = threading.Thread(target=self._publish, name=f"publish {self._name}")
                self._publisher.start()

    def flush(self) -> None:
        """Wait until all lines are published."""
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            publisher = self._publisher
        if publisher is not None:
            publisher.join()
        with self._changed:
            self._hurry = False
            self._raise()

    def _publish(self) -> None:
        """In the thread: until no line waits. An object is published again as it grows."""
        while (lines := self._take()) is not None:
            try:
                if not self._segment or len(self._published) > SEGMENT_BYTES:
                    self._segment = f"{self._name}/{len(self._store.list(self._name)):06d}-{secrets.token_hex(4)}.jsonl"
                    self._published.clear()
                self._published += lines
                self._store.put(self._segment, bytes(self._published))
            except Exception as error:
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
            self._not_before = time.monotonic() + HOLD_BACK_SECONDS

    def _take(self) -> bytearray | None:
        """The lines that wait, once it is time; or None, and then the thread is done."""
        with self._changed:
            self._changed.wait_for(lambda: self._hurry or self._error, timeout=self._not_before - time.monotonic())
            if self._error or not self._waiting:
                self._publisher = None
                return None
            lines, self._waiting = self._waiting, bytearray()
            self._changed.notify_all()
            return lines

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
