"""A dataset of Hugging Face's library ``datasets`` as a prompt source: the folder that ``save_to_disk`` wrote. Read by Arrow alone.

Its files are streamed in the order of ``state.json``. Classes, which are numbers there, get their names from ``dataset_info.json``.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from schemas.errors import PromptError


def dataset_rows(folder: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Rows with their numbers from 0. Raises PromptError."""
    if (folder / "dataset_dict.json").is_file():
        splits = ", ".join(map(str, _json(folder, "dataset_dict.json").get("splits", [])))
        raise PromptError(f"{folder}: is a dataset of several splits; give the folder of one of them: {splits}")
    if not (folder / "state.json").is_file():
        raise PromptError(f"{folder}: is a folder without state.json, so no dataset that save_to_disk wrote; give a file, or such a folder")
    files = [Path(one["filename"]).name for one in _json(folder, "state.json").get("_data_files", [])]
    features = _json(folder, "dataset_info.json").get("features") or {}
    names = {name: kind["names"] for name, kind in features.items() if isinstance(kind, dict) and kind.get("_type") == "ClassLabel"}
    number = 0
    for name in files:
        for row in _file_rows(folder / name):
            yield number, row | {column: _class(row.get(column), classes) for column, classes in names.items()}
            number += 1


def _file_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as batches:
            for batch in batches:
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise PromptError(f"{path}: not a readable Arrow file: {str(error).splitlines()[0]}") from None


def _class(value: object, names: list[str]) -> object:
    """-1 stands for no class."""
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads((folder / name).read_bytes())
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise PromptError(f"{folder / name}: is missing or damaged; save the dataset again")
    return found
