"""Tables that a command keeps of a shard's images beside it, features and scores: are they readable, and of its images?"""

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.run_dir import RunDir
from schemas.errors import RunFolderError
from schemas.records import Marker


def read_kept(run_dir: RunDir, name: str, marker: Marker, schema: pa.Schema, *, ordered: bool) -> pa.Table | str | None:
    """The table, else what is wrong with it; None if it was cleared away, or if the plan is damaged, which is told with the shard.

    It has a row for each image of the shard, by ``sample_id``, in the plan's order if it is ``ordered``.
    """
    try:
        table = pq.read_table(pa.BufferReader(run_dir.store.get(name)), page_checksum_verification=True, use_threads=False)
        planned = [draw.sample_id for draw in run_dir.read_shard(marker.shard_id).draws]
    except (FileNotFoundError, RunFolderError):
        return None
    except (OSError, pa.ArrowException) as error:
        return f"is not readable Parquet: {str(error).splitlines()[0]}"
    if not table.schema.equals(schema):
        return f"has the columns {', '.join(f'{field.name} {field.type}' for field in table.schema)}"
    images = marker.draws - marker.failed
    if table.num_rows != images:
        return f"has {table.num_rows} rows, the shard {images} images"
    sample_ids = table["sample_id"].to_pylist()
    known = set(sample_ids)
    mine = [sample_id for sample_id in planned if sample_id in known]
    if sample_ids != mine and (ordered or sorted(map(str, sample_ids)) != sorted(mine)):
        return f"its sample ids are not those of the shard{', in their order' if ordered else ''}"
    return table
