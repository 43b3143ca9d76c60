"""``promptmill status``: how far a run is, how fast, and what went wrong. Reads only; needs neither torch nor Ray.

Counts come from the commit markers, reasons too unless other rules judge the run, speed and mishaps from the event log.
"""

import json
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from jobs.committed import Reason, SlowShard, read_committed
from jobs.history import RECENT, History, Mishap, Session, WorkerSeen, read_history
from jobs.judged import read_judged
from jobs.query import query
from jobs.run_dir import RunDir
from jobs.status_view import render
from schemas import layout
from schemas.errors import QueryError

__all__ = ["Ask", "Reason", "SlowShard", "Status", "WorkerStatus", "render", "status", "to_json"]

Ask = Callable[[str], list[dict[str, Any]]]  # SQL to rows

RECENT_SHARDS = 20
SILENT_SECONDS = 600  # without a sign of life, of a driver whose process cannot be asked


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """One process of the latest start. Its rate is from its start to its last committed shard; None before that."""

    name: str
    shards: int
    draws: int
    images_per_second: float | None
    lost: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A run at one moment.

    ``state`` is running, stopped (the same command goes on) or finished. Rates count from the first ready worker
    of each start to its last committed shard; the recent rate is over the last few shards. ``eta_seconds`` is
    None unless it runs. ``stage_seconds`` add up over workers and threads. ``mishaps`` counts by kind what went wrong and
    was dealt with, over all starts; ``latest_mishaps`` and ``slowest`` are a few of each. ``judged`` tells that ``promptmill filter``
    gave the run other rules.
    """

    root: str
    fingerprint: str
    state: str
    shards_done: int
    shards_planned: int
    draws_done: int
    draws_planned: int
    accepted: int
    rejected: int
    failed: int
    num_bytes: int
    reasons: tuple[Reason, ...]
    started_at: str | None
    last_event_at: str | None
    starts: int
    images_per_second: float | None
    recent_images_per_second: float | None
    eta_seconds: float | None
    stage_seconds: Mapping[str, float]
    workers: tuple[WorkerStatus, ...]
    slowest: tuple[SlowShard, ...]
    mishaps: Mapping[str, int]
    latest_mishaps: tuple[Mishap, ...]
    note: str | None = None
    judged: bool = False


def status(run_dir: RunDir, *, now: datetime | None = None, ask: Ask | None = None) -> Status:
    """The state of a run, now; ``ask`` answers SQL over ``metadata``, ``query`` if it is not given.

    Raises RunFolderError if the run was never planned.
    """
    index = run_dir.plan
    done = read_committed(run_dir, index)
    history = _history(run_dir)
    latest = history.sessions[-1] if history.sessions else None
    counts = {name: done.counts[name] for name in ("draws", "accepted", "rejected", "failed", "num_bytes")}
    state = _state(done.shards == index.num_shards, latest, now or datetime.now(UTC))
    recent = _recent_rate(latest)
    left = index.num_draws - counts["draws"]
    judged = read_judged(run_dir.store) is not None
    told = None if judged else done.reasons
    reasons, note = _ask_for_reasons(ask or partial(_query, run_dir)) if told is None else (told, None)
    if judged and note is None:
        counts |= {name: sum(reason.draws for reason in reasons if reason.status == name) for name in ("accepted", "rejected", "failed")}
    return Status(
        root=run_dir.store.root,
        fingerprint=run_dir.job.fingerprint,
        state=state,
        shards_done=done.shards,
        shards_planned=index.num_shards,
        draws_done=counts.pop("draws"),
        draws_planned=index.num_draws,
        **counts,
        reasons=reasons,
        started_at=history.sessions[0].started_at.isoformat(timespec="seconds") if latest else None,
        last_event_at=latest.last_at.isoformat(timespec="seconds") if latest else None,
        starts=len(history.sessions),
        images_per_second=_rate(history),
        recent_images_per_second=recent,
        eta_seconds=round(left / recent, 1) if state == "running" and recent else None,
        stage_seconds=done.rounded_stage_seconds(),
        workers=_workers(latest),
        slowest=done.slowest,
        mishaps=dict(history.mishaps),
        latest_mishaps=tuple(history.latest),
        note=note,
        judged=judged,
    )


def to_json(found: Status) -> str:
    """All fields under their own names."""
    return json.dumps(asdict(found), ensure_ascii=False, indent=1)


def _history(run_dir: RunDir) -> History:
    return read_history(run_dir.store.read_log(layout.EVENTS))


def _state(complete: bool, latest: Session | None, now: datetime) -> str:
    if complete:
        return "finished"
    if latest is None or latest.ended:
        return "stopped"
    if latest.pid is not None and latest.host == socket.gethostname():
        return "running" if _alive(latest.pid) else "stopped"
    return "running" if (now - latest.last_at).total_seconds() < SILENT_SECONDS else "stopped"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's process
        return True
    return True


def _query(run_dir: RunDir, sql: str) -> list[dict[str, Any]]:
    return query([run_dir.store.root], sql).to_pylist()


def _ask_for_reasons(ask: Ask) -> tuple[tuple[Reason, ...], str | None]:
    sql = "select status, reason, count(*) as draws from metadata group by all order by status, draws desc, reason"
    try:
        return tuple(Reason(**row) for row in ask(sql)), None
    except QueryError as error:
        return (), str(error)


def _rate(history: History) -> float | None:
    """Over all starts, pauses between them left out."""
    seconds = sum(session.working_seconds for session in history.sessions)
    draws = sum(session.draws for session in history.sessions)
    return round(draws / seconds, 3) if seconds else None


def _recent_rate(latest: Session | None) -> float | None:
    if latest is None or not latest.recent:
        return None
    many = min(max(RECENT_SHARDS, 4 * len(latest.workers)), RECENT - 1)
    kept = list(latest.recent)[-many - 1 :]
    recent = kept[-many:]
    since = kept[0].at if len(kept) > many else latest.ready_at
    seconds = (recent[-1].at - since).total_seconds()
    return round(sum(done.draws for done in recent) / seconds, 3) if seconds > 0 else None


def _workers(latest: Session | None) -> tuple[WorkerStatus, ...]:
    if latest is None:
        return ()
    return tuple(_worker(name, seen) for name, seen in latest.workers.items())


def _worker(name: str, seen: WorkerSeen) -> WorkerStatus:
    seconds = (seen.last_at - seen.ready_at).total_seconds() if seen.last_at and seen.ready_at else 0.0
    return WorkerStatus(
        name=name,
        shards=seen.shards,
        draws=seen.draws,
        images_per_second=round(seen.draws / seconds, 3) if seconds > 0 else None,
        lost=seen.lost,
    )
