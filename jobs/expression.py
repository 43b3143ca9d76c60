"""An SQL condition over rows in memory, by DuckDB behind the same walls as a query."""

import duckdb
import numpy as np
import pyarrow as pa

from jobs.query import BEFORE_LOCK, Guard
from schemas.errors import QueryError

ROW = "row_number_of_the_run"


def holds(rows: pa.Table, condition: str) -> np.ndarray:
    """For which rows a condition over their columns holds, bool (N,); null counts as no. Raises QueryError."""
    guard = Guard(memory="4GB", timeout_seconds=None)
    numbered = rows.append_column(ROW, pa.array(np.arange(rows.num_rows)))
    sql = f"select {ROW}, coalesce((\n{condition}\n)::boolean, false) as holds from metadata"  # noqa: S608 - read-only to it
    with guard.errors(), duckdb.connect(config=BEFORE_LOCK | {"memory_limit": "4GB"}) as connection:
        connection.register("metadata", numbered)
        connection.execute("set secret_directory = ''")
        connection.execute("set enable_external_access = false")
        connection.execute("set lock_configuration = true")
        found = connection.sql("select * from query(?)", params=[sql]).to_arrow_table()
    wanted = [ROW, "holds"]
    if found.column_names != wanted or found.num_rows != rows.num_rows:
        raise QueryError(f"query: {condition!r} is not one condition on the columns of metadata")
    order, answer = (found[name].to_numpy() for name in wanted)
    result = np.zeros(rows.num_rows, dtype=bool)
    result[order] = answer
    return result
