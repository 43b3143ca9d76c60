"""CLIP features of the real images that a run is compared with, kept in its folder for the next comparison.

A file's name is a hash of the model's identity and of the bytes of every image in their order, so what is found is never stale; a file
that is damaged is made again. A run that cannot be written to is compared all the same. The folder may be deleted at any time.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store import Store
from pipeline.write import parquet_bytes
from schemas import layout
from schemas.errors import RunFolderError


def real_features(store: Store, version: str, files: Sequence[Path], make: Callable[[], np.ndarray]) -> np.ndarray:
    """Features of image files by the model of that version, float64 (N, D): those that are kept, else what ``make`` gives."""
    key = hashlib.sha256(version.encode())
    for file in files:
        with suppress(OSError):  # told when it is decoded
            key.update(hashlib.sha256(file.read_bytes()).digest())
    name = layout.real_file(key.hexdigest()[:16])
    found_ND = _read(store, name)
    if found_ND is None or len(found_ND) != len(files):
        found_ND = make()
        with suppress(RunFolderError):
            store.put(name, _to_bytes(found_ND))
    return found_ND


def _to_bytes(features_ND: np.ndarray) -> bytes:
    values = pa.FixedSizeListArray.from_arrays(pa.array(features_ND.ravel()), features_ND.shape[1])
    return parquet_bytes(pa.table({"feature": values}), compression="none", use_dictionary=False)


def _read(store: Store, name: str) -> np.ndarray | None:
    try:
        table = pq.read_table(pa.BufferReader(store.get(name)), page_checksum_verification=True)
        values = table["feature"].combine_chunks()
        return values.flatten().to_numpy().reshape(len(values), -1)
    except (OSError, RunFolderError, pa.ArrowException, KeyError, ValueError):
        return None
