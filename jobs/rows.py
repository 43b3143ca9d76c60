"""The metadata of a run that may still go on, as a table in DuckDB's memory; asked behind the walls of a query.

A large run has many small files, and each takes milliseconds: too long for a page, or for one query of many. So they are read once, a
part at a time where somebody waits for the first of them, and what is committed or judged later is taken in when it is there.
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from jobs.judged import added_scorers, metadata_sources, read_judged
from jobs.portions import portions
from jobs.query import BEFORE_LOCK, Guard
from jobs.run_dir import READERS, JobRecord, RunDir, damaged
from pipeline.store import Store
from schemas import layout
from schemas.errors import QueryError, UserError
from schemas.records import Marker
from schemas.tables import metadata_schema

STOP_SECONDS = 5.0  # queries are given to end
ROWS_AT_A_TIME, SHARDS_AT_A_TIME = 100_000, 500  # that are read before they are put into the table


class WatchedRun(RunDir):
    """A run folder that is looked at again and again: only markers that were published since the last look are read."""

    def __init__(self, store: Store, job: JobRecord) -> None:
        super().__init__(store, job)
        self._seen: Mapping[str, tuple[str, Marker | None]] = {}

    def each_marker(self) -> Iterator[tuple[str, Marker | None]]:
        stamps, seen = self.store.stamps(layout.DONE), self._seen
        fresh = [name for name, stamp in stamps.items() if name not in seen or seen[name][0] != stamp]
        with ThreadPoolExecutor(READERS, thread_name_prefix="markers") as pool:
            read = dict(zip(fresh, pool.map(self.marker, fresh), strict=True))
        self._seen = now = {name: (stamp, read[name] if name in read else seen[name][1]) for name, stamp in stamps.items()}
        return ((name, now[name][1]) for name in sorted(now))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """A table and what is in it: the verdicts' index, and the marker of each shard."""

    connection: duckdb.DuckDBPyConnection
    judged: bytes
    scorers: Sequence[str]
    schema: pa.Schema
    shards: dict[int, Marker] = field(default_factory=dict)


class Rows:
    """Views ``metadata`` and ``failed`` of the committed shards.

    ``memory`` bounds the table and the queries together, ``timeout_seconds`` one query; ``look_seconds`` pass before the run is
    looked at again. ``seconds_at_a_time`` bound what is read in one look; ``keep_up`` reads the rest.
    """

    def __init__(
        self,
        run: RunDir,
        *,
        memory: str = "4GB",
        timeout_seconds: float | None = 15.0,
        look_seconds: float = 1.0,
        seconds_at_a_time: float | None = None,
    ) -> None:
        self.run = run
        self._guard = {"memory": memory, "timeout_seconds": timeout_seconds, "views": "metadata and failed"}
        self._memory = memory
        self._look_seconds = look_seconds
        self._lock = threading.Lock()
        self._asking: set[duckdb.DuckDBPyConnection] = set()
        self._stopped = False
        self._looked_at = 0.0
        self._seconds = seconds_at_a_time
        self._committed = 0
        self.changes = 0  # how often rows came, went or were judged anew
        self._table = self._empty(b"")
        self.refresh()

    def refresh(self) -> None:
        """Take in what was committed and judged since, unless another thread is at it. Raises UserError, and keeps what it had."""
        self._look(self._seconds)

    def _look(self, seconds: float | None) -> None:
        if not self._lock.acquire(blocking=False):
            return
        try:
            now = time.monotonic()
            if self._looked_at and not self.behind and now - self._looked_at < self._look_seconds:
                return
            judged = _index_of_verdicts(self.run)
            markers = {marker.shard_id: marker for marker in self.run.markers()}
            table = self._table if judged == self._table.judged else self._empty(judged)
            new = [marker for marker in markers.values() if table.shards.get(marker.shard_id) != marker]
            gone = sorted(table.shards.keys() - markers.keys())
            self._committed = len(markers)
            whole = table is not self._table and bool(self._table.shards)  # verdicts are old or new, never some of each
            for part in self._parts(new) if new else [[]] if gone else []:
                self._take(table, part, gone)
                gone = []
                self.changes += 1
                if self._stopped or (seconds is not None and not whole and time.monotonic() - now > seconds):
                    break
            if table is not self._table or not self._looked_at:
                table.connection.execute("checkpoint")  # compresses a table in memory
            self._table = table
            self._looked_at = time.monotonic()
        finally:
            self._lock.release()

    def keep_up(self) -> None:
        """Read what is left to be read. What is damaged, the next ``refresh`` tells again."""
        with suppress(UserError):
            self._look(None)

    @property
    def behind(self) -> int:
        """Committed shards that are not in the table yet."""
        return max(0, self._committed - len(self._table.shards))

    @property
    def scorers(self) -> Sequence[str]:
        """Those of the run, then those that were added to it."""
        return self._table.scorers

    @property
    def score(self) -> str:
        """Column of the first scorer, empty without one."""
        return f"{self.scorers[0]}_score" if self.scorers else ""

    @property
    def schema(self) -> pa.Schema:
        """Of ``metadata``."""
        return self._table.schema

    @property
    def sortable(self) -> list[str]:
        """Columns that have an order, scores first."""
        names = [field.name for field in self.schema if not pt.is_nested(field.type)]
        return sorted(names, key=lambda name: not name.endswith("_score"))

    def marker(self, shard_id: int) -> Marker | None:
        """The commit marker of a shard that is in the table."""
        return self._table.shards.get(shard_id)

    def ask(self, sql: str) -> list[dict[str, Any]]:
        """The rows of one SELECT. Raises QueryError with one line."""
        guard = Guard(**self._guard)
        cursor = self._table.connection.cursor()
        self._asking.add(cursor)
        try:
            if self._stopped:
                raise QueryError("query: the server has ended")
            with guard.errors(), guard.deadline(cursor):
                return cursor.sql("select * from query(?)", params=[sql]).to_arrow_table().to_pylist()
        finally:
            self._asking.discard(cursor)
            cursor.close()

    def stop(self) -> None:
        """End all queries that are under way and answer no further ones: DuckDB must be at rest when the process ends."""
        self._stopped = True
        self._lock.acquire(timeout=STOP_SECONDS)  # and keep it: nothing is read any more
        until = time.monotonic() + STOP_SECONDS
        while self._asking and time.monotonic() < until:
            for cursor in list(self._asking):  # again, since an interrupt that comes before the query begins is lost
                cursor.interrupt()
            time.sleep(0.02)

    def _empty(self, judged: bytes) -> _Table:
        scorers = [*self.run.job.scorers, *added_scorers(self.run.store)]
        schema = metadata_schema(scorers)
        with Guard(**self._guard).errors():
            connection = duckdb.connect(config=BEFORE_LOCK | {"memory_limit": self._memory})
            connection.register("empty", schema.empty_table())
            connection.execute("create table metadata as from empty")
            connection.unregister("empty")
            connection.execute("create view failed as from metadata where status = 'failed'")
            connection.execute("set secret_directory = ''")
            connection.execute("set enable_external_access = false")
            connection.execute("set lock_configuration = true")
        return _Table(connection=connection, judged=judged, scorers=scorers, schema=schema)

    def _take(self, table: _Table, markers: Sequence[Marker], gone: Sequence[int]) -> None:
        """Put the rows of these shards into the table instead of older ones, and take out those of ``gone``: all of it, or nothing."""
        draws = {layout.metadata_file(marker.shard_id): marker.draws for marker in markers}
        old = [*gone, *(marker.shard_id for marker in markers if marker.shard_id in table.shards)]
        with Guard(**self._guard).errors(), table.connection.cursor() as cursor, ThreadPoolExecutor(READERS) as pool:
            cursor.begin()
            if old:
                cursor.execute(f"delete from metadata where shard_id in ({', '.join(map(str, old))})")  # noqa: S608 - numbers
            for names, where, _ in metadata_sources(self.run, markers) if markers else ():
                # a file of unknown size comes alone
                for some in portions(names, lambda name: draws.get(name, ROWS_AT_A_TIME), largest=ROWS_AT_A_TIME):
                    fresh = pa.concat_tables(pool.map(self._read, some), promote_options="default").combine_chunks()  # chunks cost
                    cursor.register("fresh", fresh)
                    cursor.execute(f"insert into metadata by name select * from fresh where {where}")  # noqa: S608 - no text of a user
                    cursor.unregister("fresh")
            cursor.commit()
        for shard_id in gone:
            del table.shards[shard_id]
        table.shards.update({marker.shard_id: marker for marker in markers})

    def _parts(self, markers: Sequence[Marker]) -> list[Sequence[Marker]]:
        """Shards to take in at once: those of the tables of verdicts, then the others, some at a time."""
        judged = read_judged(self.run.store)
        covered = [marker for marker in markers if judged and judged.covers(marker)]
        others = [marker for marker in markers if not (judged and judged.covers(marker))]
        some = (others[first : first + SHARDS_AT_A_TIME] for first in range(0, len(others), SHARDS_AT_A_TIME))
        return [part for part in (covered, *some) if part]

    def _read(self, name: str) -> pa.Table:
        try:
            data = pa.BufferReader(self.run.store.get(name))
            return pq.ParquetFile(data, page_checksum_verification=True).read(use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise damaged(self.run, name, "is missing" if isinstance(error, FileNotFoundError) else error) from None


def _index_of_verdicts(run: RunDir) -> bytes:
    try:
        return run.store.get(layout.JUDGED_INDEX)
    except FileNotFoundError:
        return b""
