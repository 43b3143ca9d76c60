"""``events.jsonl`` to what happened: the sessions of a run, its workers, what went wrong. Read-only and forgiving.

The log is the only file that is appended to, so a kill can tear its last line; torn and foreign lines are skipped.
"""

import io
import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

BEGINNINGS = ("start", "resume")
ENDINGS = ("finish", "drained", "drain")
MISHAPS = ("worker_lost", "worker_hung", "worker_refused", "shard_retry", "shard_abandoned", "shard_damaged", "batch_halved")
LATEST = 5  # mishaps that are kept in full
RECENT = 1025  # committed shards of a session that are


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """One committed shard."""

    at: datetime
    worker: str
    draws: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mishap:
    """Something that went wrong and was dealt with. ``kind`` is one of MISHAPS, ``about`` a worker or a shard, ``why`` in one line."""

    at: str
    kind: str
    about: str
    why: str


@dataclass(slots=True, kw_only=True)
class WorkerSeen:
    """One process that held the models, and what it has committed. ``load_seconds`` is how long it took to load them."""

    ready_at: datetime | None = None
    load_seconds: float = 0.0
    lost: bool = False
    shards: int = 0
    draws: int = 0
    last_at: datetime | None = None


@dataclass(slots=True, kw_only=True)
class Session:
    """One start of ``promptmill run``. ``ended`` is false while it goes on, and for ever if it was killed.

    ``draws`` are those of the committed shards, the latest of which are in ``recent``.
    """

    started_at: datetime
    last_at: datetime
    host: str | None = None
    pid: int | None = None
    ended: bool = False
    shards: int = 0
    draws: int = 0
    recent: deque[Done] = field(default_factory=lambda: deque(maxlen=RECENT))
    workers: dict[str, WorkerSeen] = field(default_factory=dict)

    @property
    def ready_at(self) -> datetime:
        """When sampling could begin: the first worker was ready."""
        return min((worker.ready_at for worker in self.workers.values() if worker.ready_at), default=self.started_at)

    @property
    def working_seconds(self) -> float:
        """From then to the last committed shard."""
        return max(0.0, (self.recent[-1].at - self.ready_at).total_seconds()) if self.recent else 0.0

    def add(self, done: Done) -> None:
        """A shard was committed."""
        worker = self.workers.setdefault(done.worker, WorkerSeen())
        for one in (self, worker):
            one.shards += 1
            one.draws += done.draws
        worker.last_at = done.at
        self.recent.append(done)


@dataclass(slots=True, kw_only=True)
class History:
    """All sessions in order, how many mishaps there were of each kind, and the latest of them."""

    sessions: list[Session] = field(default_factory=list)
    mishaps: Counter[str] = field(default_factory=Counter)
    latest: deque[Mishap] = field(default_factory=lambda: deque(maxlen=LATEST))


def read_history(log: bytes) -> History:
    """The history in the bytes of an event log."""
    history = History()
    actors: dict[Any, str] = {}
    for at, event in _events(io.BytesIO(log)):
        with suppress(TypeError, ValueError):  # facts of another type than ours
            _take(history, actors, at, event)
    return history


def _events(lines: Iterable[bytes]) -> Iterator[tuple[datetime, dict[str, Any]]]:
    for line in lines:
        try:
            event = json.loads(line)
            at = datetime.fromisoformat(event["time"])
            event["event"] = str(event["event"])
        except (ValueError, TypeError, KeyError):
            continue
        yield at if at.tzinfo else at.replace(tzinfo=UTC), event


def _take(history: History, actors: dict[Any, str], at: datetime, event: dict[str, Any]) -> None:
    """Enter one event."""
    kind = event["event"]
    if kind in BEGINNINGS or not history.sessions:
        pid = event.get("pid")
        history.sessions.append(Session(started_at=at, last_at=at, host=event.get("host"), pid=pid if isinstance(pid, int) else None))
        actors.clear()
    session = history.sessions[-1]
    session.last_at = max(session.last_at, at)
    if kind in ENDINGS:
        session.ended = True
    elif kind == "shard_done":
        session.add(Done(at=at, worker=str(event.get("worker", "")), draws=int(event.get("draws", 0))))
    elif kind == "worker_ready":
        name = str(event.get("worker", ""))
        actors[event.get("actor")] = name
        session.workers[name] = WorkerSeen(ready_at=at, load_seconds=float(event.get("seconds", 0.0)))
    elif kind in MISHAPS:
        history.mishaps[kind] += 1
        history.latest.append(_mishap(at, event, actors))
        if kind == "worker_lost" and (worker := session.workers.get(_worker(event, actors))):
            worker.lost = True


def _worker(event: dict[str, Any], actors: dict[Any, str]) -> str:
    number = event.get("actor")
    return str(event.get("worker", actors.get(number, "" if number is None else f"actor {number}")))


def _mishap(at: datetime, event: dict[str, Any], actors: dict[Any, str]) -> Mishap:
    about = f"shard {event['shard_id']}" if "shard_id" in event else _worker(event, actors)
    facts = (event.get("error"), event.get("found"), _told(event, "seconds", "{} s in one batch"), _told(event, "batch_size", "now {}"))
    why = next((str(fact) for fact in facts if fact), "")
    return Mishap(at=at.isoformat(timespec="seconds"), kind=event["event"], about=about, why=" ".join(why.split())[:300])


def _told(event: dict[str, Any], name: str, text: str) -> str | None:
    return text.format(event[name]) if name in event else None
