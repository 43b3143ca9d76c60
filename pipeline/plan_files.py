"""The files of a plan: written as the shards come, read shard by shard. Memory does not grow with the number of draws."""

import hashlib
import io
import json
import threading
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import chain, islice

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store import Store
from schemas import layout
from schemas.errors import RunFolderError
from schemas.records import Draw, PlanIndex, Shard
from schemas.tables import draw_from_row, draw_row, plan_schema


def write_shards(store: Store, shards: Iterator[Shard]) -> tuple[list[str], int]:
    """Write the plan's files, one row group per shard; the digest of each shard's draws, and the number of all draws."""
    schema = plan_schema()
    digests: list[str] = []
    num_draws = 0
    for first in shards:
        sink = io.BytesIO()
        with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
            for shard in chain([first], islice(shards, layout.SHARDS_PER_PLAN_FILE - 1)):
                rows = [draw_row(draw, shard.shard_id) for draw in shard.draws]
                writer.write_table(pa.Table.from_pylist(rows, schema), row_group_size=max(1, len(rows)))
                digests.append(_digest(row["sample_id"] for row in rows))
                num_draws += len(rows)
        store.put(layout.plan_file(first.shard_id), sink.getvalue())
    return digests, num_draws


def draws_digest(draws: Iterable[Draw]) -> str:
    """16 hexadecimal digits over the sample ids of a shard; ties a commit marker to its plan."""
    return _digest(draw.sample_id for draw in draws)


def read_index(store: Store) -> PlanIndex | None:
    """The plan's index, None if nothing was planned yet."""
    try:
        fields = json.loads(store.get(layout.PLAN_INDEX))
        return PlanIndex(**fields | {"shards": tuple(fields["shards"])})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        raise RunFolderError(
            f"{store.root}/{layout.PLAN_INDEX}: is damaged; delete it and run the same command again, it is made anew"
        ) from None


def write_index(store: Store, index: PlanIndex) -> None:
    """Write the plan's index, which makes the plan count: its files must be there."""
    store.put(layout.PLAN_INDEX, json.dumps(asdict(index)).encode())


def read_shard(store: Store, shard_id: int) -> Shard:
    """One shard of the plan. For many of them use a ``PlanReader``. Raises RunFolderError."""
    return PlanReader(store).shard(shard_id)


class PlanReader:
    """Shards of a plan that stays as it is. Keeps the last file open: it holds a thousand shards, the next one most likely too.

    For any number of threads.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._name: str | None = None
        self._file: pq.ParquetFile | None = None

    def shard(self, shard_id: int) -> Shard:
        """One shard. Raises RunFolderError if it cannot be read."""
        name = layout.plan_file(shard_id)
        try:
            with self._lock:
                table = self._open(name).read_row_group(shard_id % layout.SHARDS_PER_PLAN_FILE, use_threads=False)
        except (pa.ArrowInvalid, OSError, IndexError) as error:
            raise RunFolderError(
                f"{self._store.root}/{name}: shard {shard_id} cannot be read ({error});"
                f" delete {layout.PLAN_INDEX} and run the same command again"
            ) from None
        try:
            return Shard(shard_id=shard_id, draws=tuple(draw_from_row(row) for row in table.to_pylist()))
        except (KeyError, TypeError) as error:
            raise RunFolderError(
                f"{self._store.root}/{name}: lacks columns of this version of promptmill ({error});"
                f" {layout.JOB} names the version that planned this run: use that one, or choose another --out"
            ) from None

    def _open(self, name: str) -> pq.ParquetFile:
        if self._file is None or self._name != name:
            self._file = pq.ParquetFile(pa.BufferReader(self._store.get(name)))
            self._name = name
        return self._file


def _digest(sample_ids: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sample_ids).encode()).hexdigest()[:16]
