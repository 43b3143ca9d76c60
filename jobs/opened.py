"""A run, opened from Python: its tables as Arrow, its images as pictures with their rows. Reads only."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from jobs.query import query
from jobs.run_dir import RunDir
from jobs.selection import Selection, select
from schemas.config import JobConfig


class OpenRun:
    """What ``open_run`` gives. Shards that are committed at the moment of a call are seen by it."""

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self._run = RunDir.open(path)

    @property
    def config(self) -> JobConfig:
        """The job's configuration with every default."""
        return self._run.job.config

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over all that decides the dataset, except the prompts."""
        return self._run.job.fingerprint

    def sql(self, text: str) -> pa.Table:
        """Result of one SELECT over ``metadata``, ``images``, ``embeddings`` and ``failed``. Raises QueryError."""
        return query([self._run.store.root], text)

    def metadata(self, where: str = "true") -> pa.Table:
        """Rows of ``metadata`` that satisfy an SQL condition, with the verdicts that hold now. Raises QueryError.

        ``.to_pandas()`` makes a data frame of it, ``duckdb.from_arrow(...)`` a relation.
        """
        return self.sql(f"select * from metadata where {where}\n order by shard_id, prompt_id, draw_index")  # noqa: S608

    def images(self, where: str = "status = 'accepted'") -> Iterator[tuple[Image.Image, dict[str, Any]]]:
        """Pictures, each with its row of ``metadata`` (tags as a dict), one by one in bounded memory.

        Raises QueryError for a wrong condition, RunFolderError at an image that is not the one that was made.
        """
        for row, data in select(self._run, Selection(where=where, only="all")):
            with Image.open(io.BytesIO(data)) as picture:
                picture.load()
                yield picture, row
