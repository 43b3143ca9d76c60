"""``promptmill query``: SQL over finished shards, by DuckDB, that can neither write nor leave the run.

Three walls, since any one has been seen to leak: the text goes through ``query(?)``, which takes one SELECT and
nothing else; DuckDB may open the files of the committed shards and no other file, and its configuration is
locked; and it has no folder to spill to, so memory is bounded and nothing is written anywhere.
"""

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import TypeVar

import duckdb
import pyarrow as pa

from jobs.embeddings import files as embedding_files
from jobs.judged import metadata_sources
from jobs.results import Result, print_result
from jobs.run_dir import RunDir
from pipeline.store import is_url, open_objects
from schemas import layout
from schemas.errors import QueryError
from schemas.tables import embeddings_schema, images_schema, metadata_schema

__all__ = ["open_query", "print_result", "query", "read_sql"]

T = TypeVar("T")
VIEWS = "metadata, images, embeddings and failed"
BATCH_ROWS = 1024
BEFORE_LOCK = {  # settings of the connection; most leave no door that is not needed
    "python_enable_replacements": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "allow_persistent_secrets": False,
    "temp_directory": "",
}


def read_sql(path: Path) -> str:
    """SQL from a text file, ``-`` for the input. Raises QueryError."""
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise QueryError(f"--sql-file {path}: is not text in UTF-8") from None
    except OSError as error:
        raise QueryError(f"--sql-file {path}: cannot be read: {error.strerror}") from None


def query(run_paths: Sequence[str | Path], sql: str, *, memory: str = "2GB", timeout_seconds: float | None = None) -> pa.Table:
    """The whole result of one SELECT as an Arrow table; see ``open_query``."""
    with open_query(run_paths, sql, memory=memory, timeout_seconds=timeout_seconds) as result:
        return pa.Table.from_batches(result.batches, result.schema)


@contextmanager
def open_query(run_paths: Sequence[str | Path], sql: str, *, memory: str = "2GB", timeout_seconds: float | None = None) -> Iterator[Result]:
    """The result of one SELECT over the views ``metadata``, ``images``, ``embeddings`` and ``failed``, streamed.

    The views hold the shards that are committed now; a run that goes on does not disturb the query. With more
    than one run each view begins with a column ``run``, the path as given. ``memory`` (such as '2GB') bounds
    DuckDB, ``timeout_seconds`` the whole query. Raises QueryError with one line, RunFolderError if a path is no run.
    """
    runs = [(str(path), RunDir.open(path)) for path in run_paths]
    guard = Guard(memory=memory, timeout_seconds=timeout_seconds, runs=runs)
    with ExitStack() as stack:
        try:
            result = stack.enter_context(_answer(runs, sql, guard, memory))
        except _JudgedAnew:
            result = stack.enter_context(_answer(runs, sql, guard, memory))
        yield result


@contextmanager
def _answer(runs: Sequence[tuple[str, RunDir]], sql: str, guard: "Guard", memory: str) -> Iterator[Result]:
    """The result with its first batch read: what fails by then may be asked again."""
    with ExitStack() as stack:
        with guard.errors():
            connection = stack.enter_context(duckdb.connect(config=BEFORE_LOCK | {"memory_limit": memory}))
            _make_views(connection, runs)
            stack.enter_context(guard.deadline(connection))
            pool = stack.enter_context(ThreadPoolExecutor(max_workers=1))
            reader = _call(pool, connection, lambda: connection.sql("select * from query(?)", params=[sql]).to_arrow_reader(BATCH_ROWS))
            batches = guard.watch(lambda: _call(pool, connection, reader.read_next_batch))
            first = next(batches, None)
        yield Result(schema=reader.schema, batches=chain([] if first is None else [first], batches))


def _make_views(connection: duckdb.DuckDBPyConnection, runs: Sequence[tuple[str, RunDir]]) -> None:
    """Views over committed shards only; then the doors are locked."""
    readable: list[str] = []
    parts: dict[str, list[str]] = {"metadata": [], "images": [], "embeddings": []}
    for name, run in runs:
        markers = run.markers()
        label = f"{_quoted(name)} as run, " if len(runs) > 1 else ""
        sources = [("metadata", names, where, metadata_schema(scorers)) for names, where, scorers in metadata_sources(run, markers)]
        sources.append(("images", [layout.images_file(marker.shard_id) for marker in markers], "true", images_schema()))
        sources.append(("embeddings", embedding_files(run, markers), "true", embeddings_schema(pa.float32())))
        for view, names, where, schema in sources:
            # first all columns of today: null in a run that an older version made
            parts[view].append(f"select {label}* from {_no_rows(schema)}")  # noqa: S608 - no text of a user
            if not names:
                continue
            if is_url(run.store.root):
                source = f"{view}_{len(parts[view])}"
                connection.register(source, open_objects(run.store.root).dataset(names, schema))
            else:
                files = [f"{run.store.root}/{name}" for name in names]
                source = f"read_parquet({_list(files)}, hive_partitioning = false)"
                readable += files
            parts[view].append(f"select {label}* from {source} where {where}")  # noqa: S608 - quoted paths
    for view, selects in parts.items():
        connection.execute(f"create view {view} as {' union all by name '.join(selects)}")
    connection.execute("create view failed as from metadata where status = 'failed'")
    connection.execute(f"set allowed_paths = {_list(readable)}")
    connection.execute("set secret_directory = ''")
    connection.execute("set enable_external_access = false")
    connection.execute("set lock_configuration = true")


def _no_rows(schema: pa.Schema) -> str:
    """All columns of a table and no row."""
    columns = ", ".join(f'null::{sql_type(field.type)} as "{field.name}"' for field in schema)
    return f"(select {columns} where false)"


_SQL = {"string": "varchar", "binary": "blob", "bool": "boolean", "double": "double", "float": "float"}


def sql_type(kind: pa.DataType) -> str:
    """DuckDB's name of an Arrow type. DuckDB tells it too, of a table that is handed over, but imports pandas for that."""
    if pa.types.is_map(kind):
        return f"map({sql_type(kind.key_type)}, {sql_type(kind.item_type)})"
    if pa.types.is_struct(kind):
        fields = ", ".join(f'"{field.name}" {sql_type(field.type)}' for field in kind)
        return f"struct({fields})"
    if pa.types.is_list(kind):
        return f"{sql_type(kind.value_type)}[]"
    return _SQL.get(str(kind), str(kind))  # int32, uint64 are names in both


def _call(pool: ThreadPoolExecutor, connection: duckdb.DuckDBPyConnection, function: Callable[[], T]) -> T:
    """The function's result; it runs in the pool's thread, since DuckDB does not look for Ctrl-C in every kind of query."""
    future = pool.submit(function)
    try:
        return future.result()
    except KeyboardInterrupt:
        while wait([future], timeout=0.05).not_done:  # again, since an interrupt that comes before the query begins is lost
            connection.interrupt()
        raise


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _list(texts: Iterable[str]) -> str:
    return "[" + ", ".join(map(_quoted, texts)) + "]"


class _JudgedAnew(QueryError):
    """Tables of verdicts were replaced while they were read."""


class Guard:
    """Time limit of one query, and its errors in one line."""

    def __init__(self, *, memory: str, timeout_seconds: float | None, runs: Sequence[tuple[str, RunDir]] = (), views: str = VIEWS) -> None:
        self._memory = memory
        self._views = views
        self._timeout_seconds = timeout_seconds
        self._runs = runs
        self._verdicts: list[bytes] = []
        self._expired = threading.Event()

    @contextmanager
    def deadline(self, connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
        """Interrupt the connection when time is up."""
        if self._timeout_seconds is None:
            yield
            return

        def expire() -> None:
            self._expired.set()
            connection.interrupt()

        timer = threading.Timer(self._timeout_seconds, expire)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Errors of DuckDB, Arrow and the files as QueryError."""
        self._verdicts = self._read_verdicts()
        try:
            yield
        except (duckdb.Error, pa.ArrowException, UnicodeError, OSError) as error:
            raise self._told(error) from None

    def watch(self, read_next_batch: Callable[[], pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The batches; Arrow passes DuckDB's errors on as OSError or ArrowInvalid."""
        while True:
            try:
                batch = read_next_batch()
            except StopIteration:
                return
            except (pa.ArrowException, OSError) as error:
                raise self._told(error) from None
            yield batch

    def _read_verdicts(self) -> list[bytes]:
        """What names the tables that are read; not parsed, since a large run's is long."""
        stores = [run.store for _, run in self._runs]
        return [store.get(layout.JUDGED_INDEX) if store.exists(layout.JUDGED_INDEX) else b"" for store in stores]

    def _told(self, error: Exception) -> QueryError:
        # of an allowed file that is gone DuckDB says that it must not be read
        at_files = _is_about_files(error) or isinstance(error, duckdb.PermissionException)
        if at_files and self._read_verdicts() != self._verdicts:
            return _JudgedAnew("query: the run was judged anew while it was read; run the same command again")
        return QueryError(f"query: {self._line(error)}")

    def _line(self, error: Exception) -> str:
        """What DuckDB said, without its drawing of the place, and what to do."""
        said = _first_lines(str(error))
        if self._expired.is_set():
            return f"took longer than {self._timeout_seconds:g} s; select fewer rows, or allow more time"
        if "Out of Memory Error" in said:
            return f"needs more than {self._memory} of memory; select fewer columns, add a LIMIT, or allow more memory"
        if "Expected a single SELECT statement" in said or "must be at the top level" in said:
            return "only one SELECT is allowed, and nothing that writes, sets, loads or attaches; 'describe metadata' lists the columns"
        if isinstance(error, duckdb.PermissionException) or "has been locked" in said:
            return f"{said.split(' - ')[0]}; a query may only read the run's {self._views}"
        if isinstance(error, duckdb.CatalogException) and said.startswith("Catalog Error: Table with name"):
            return f"{said}; the tables are {self._views}"
        if _is_about_files(error) and self._runs:
            return f"{said}; a shard is missing or damaged: 'promptmill verify {self._runs[0][0]}' tells which"
        return said


def _is_about_files(error: Exception) -> bool:
    return isinstance(error, duckdb.IOException | OSError) or ".parquet'" in _first_lines(str(error))


def _first_lines(message: str) -> str:
    """The first line, and the candidates that DuckDB suggests."""
    lines = [line.strip() for line in message.splitlines()]
    kept = lines[:1] + [line for line in lines[1:] if line.startswith(("Candidate", "Did you mean")) and not line.endswith(":")]
    return " ".join(kept)
