"""A log of pieces: written by a thread of its own, in order, bounded, and loud when it cannot be written."""

import threading
from collections.abc import Callable

import pytest

from pipeline import object_log
from pipeline.object_log import ObjectLog
from schemas.errors import RunFolderError


class Shelf:
    """An object store in memory; ``before`` is called with the bytes of each PUT."""

    def __init__(self, before: Callable[[bytes], None] = lambda data: None) -> None:
        self.before = before
        self.objects: dict[str, bytes] = {}

    def put(self, name: str, data: bytes) -> None:
        self.before(data)
        self.objects[name] = data

    def list(self, folder: str) -> list[str]:
        return sorted(self.objects)


def test_large_logs_are_published_in_pieces_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_log, "SEGMENT_BYTES", 10)
    shelf = Shelf()
    log = ObjectLog("log", shelf)
    for number in range(9):
        log.append(f"line {number}")
        if number % 2:
            log.flush()
    log.flush()
    log.flush()
    assert b"".join(data for _, data in sorted(shelf.objects.items())) == b"".join(b"line %d\n" % number for number in range(9))
    assert [name[:11] for name in sorted(shelf.objects)] == [f"log/{number:06d}-" for number in range(5)]


def test_a_store_that_stands_still_holds_the_writer_up_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes comes to its end only if nothing bounds what waits; then a PUT would be larger than the bound."""
    monkeypatch.setattr(object_log, "WAITING_BYTES", 30)
    monkeypatch.setattr(object_log, "SEGMENT_BYTES", 0)
    monkeypatch.setattr(object_log, "HOLD_BACK_SECONDS", 0)
    written = threading.Event()
    shelf = Shelf(lambda data: [written.wait(0.05)].clear())
    log = ObjectLog("log", shelf)
    for number in range(40):
        log.append(f"{number:09d}")
    written.set()
    log.flush()
    assert max(len(data) for data in shelf.objects.values()) <= 40
    assert sum(len(data) for data in shelf.objects.values()) == 400


def test_an_error_is_told_to_whoever_writes_or_waits_next(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(data: bytes) -> None:
        raise RunFolderError("denied")

    log = ObjectLog("log", Shelf(refuse))
    log.append("line")
    for again in (log.flush, log.flush, lambda: log.append("another")):
        with pytest.raises(RunFolderError, match="denied"):
            again()
    assert not [thread for thread in threading.enumerate() if thread.name == "publish log"]
