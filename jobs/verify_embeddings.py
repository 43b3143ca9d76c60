"""``embeddings/`` against the markers of the run and the model that its index names: files that fit nothing, that are damaged, or missing.

While another command is at work in the run, and perhaps writes features, what does not fit yet and what is missing are let be.
"""

import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from jobs.embeddings import Encoder, file_of, read_encoder
from jobs.lease import held
from jobs.run_dir import RunDir
from jobs.verify_kept import read_kept
from jobs.verify_rows import Problem
from schemas import layout
from schemas.errors import RunFolderError
from schemas.records import Marker
from schemas.tables import embeddings_schema

AGAIN = "delete it, and run 'promptmill embed' again"
CLEAR = "run 'promptmill embed' again, it clears it away"
LENGTH = (0.95, 1.05)  # of a feature; half floats of a vector of length 1
_OURS = re.compile(layout.embeddings_file(0, "KEY").replace("00000", r"(\d{5,})").replace("KEY", "[0-9a-f]{16}"))


def embedding_problems(
    run_dir: RunDir, names: Sequence[str], markers: Sequence[Marker], *, on_count: Callable[[str, int, int], None]
) -> Iterator[Problem]:
    """What is wrong with the files ``names``, which were listed before the markers were read."""
    done, busy = {marker.shard_id for marker in markers}, held(run_dir.store)
    try:
        encoder = read_encoder(run_dir.store)
    except RunFolderError:
        yield Problem(file=layout.EMBEDDINGS_INDEX, what="is damaged", remedy=AGAIN)
        return
    fitting = {file_of(marker, encoder.version): marker for marker in markers} if encoder else {}
    there = [name for name in names if name != layout.EMBEDDINGS_INDEX]
    for number, name in enumerate(there, 1):
        ours = _OURS.fullmatch(name)
        if ours is None:
            yield Problem(file=name, what="is no file of a run", remedy="move it elsewhere")
        elif int(ours[1]) not in done:
            yield Problem(file=name, what="belongs to no committed shard", remedy=CLEAR)
        elif encoder and name in fitting:
            what = _wrong(run_dir, name, fitting[name], encoder)
            if what:
                yield Problem(file=name, what=what, remedy=AGAIN)
        elif encoder and not busy:
            yield Problem(file=name, what="is of other images or another model than the run's", remedy=CLEAR)
        on_count("files of embeddings", number, len(there))
    present = set(there)
    lacking = sorted(marker.shard_id for name, marker in fitting.items() if name not in present)
    if lacking and not busy:
        what = f"{len(lacking):,} of {len(fitting):,} shards have no features, the first is {lacking[0]}"
        yield Problem(file=layout.EMBEDDINGS_INDEX, what=what, remedy="run 'promptmill embed' again, it makes them")


def _wrong(run_dir: RunDir, name: str, marker: Marker, encoder: Encoder) -> str | None:
    """The first thing that is wrong with a file of features."""
    table = read_kept(run_dir, name, marker, embeddings_schema(), ordered=True)
    if table is None or isinstance(table, str):
        return table
    sample_ids = table["sample_id"].to_pylist()
    features = table["embedding"].combine_chunks()
    lengths = np.diff(features.offsets.to_numpy())
    if len(lengths) and (lengths != encoder.dimensions).any():
        return f"has features of {lengths[lengths != encoder.dimensions][0]} numbers, the model makes {encoder.dimensions}"
    values_ND = features.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, encoder.dimensions)
    size_N = np.linalg.norm(values_ND, axis=1)
    odd = np.flatnonzero(~((size_N > LENGTH[0]) & (size_N < LENGTH[1])))
    return f"the feature of {sample_ids[odd[0]]} has length {size_N[odd[0]]:.3g}, not 1" if len(odd) else None
