"""Prompt sources as a stream of ``Prompt``: txt, csv, jsonl, parquet, a dataset on disk, or texts or templates from the configuration.

One row is held at a time, with its input images. Every problem names the file and the row.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from pipeline.inputs import InputReader, bytes_or_path
from pipeline.prompt_dataset import dataset_rows
from pipeline.store import is_url
from pipeline.templates import template_rows
from pipeline.text_check import text_check
from schemas.config import PROMPT_COLUMNS, SAMPLING_COLUMNS, PromptsConfig, SamplingConfig, in_folder
from schemas.errors import PromptError
from schemas.modes import INPUTS, ROLES, Mode, Role, column, roles
from schemas.records import InputImage, Prompt

_Row = tuple[int, Mapping[str, object]]  # number shown in errors, columns


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What each row must have, and must not: input images, the mode that the errors tell, and what may be wrong with a text."""

    mode: Mode
    roles: tuple[Role, ...]
    problem: Callable[[str], str]


def read_prompts(config: PromptsConfig, *, base_dir: Path, mode: Mode = "text-to-image", reference: bool = False) -> Iterator[Prompt]:
    """All prompts of the source, in order. An ``id`` that is not given is the row's number from 0.

    With ``reference`` each has a reference image beside those of the mode. Raises PromptError on a source that is missing, empty,
    or has a row that is not a prompt, or lacks the images.
    """
    wanted = _Wanted(mode=mode, roles=roles(mode, reference=reference), problem=text_check(config))
    folder = in_folder(base_dir, config.file).parent if config.file else base_dir
    images = InputReader(folder, [one if is_url(one) else in_folder(base_dir, one) for one in config.image_folders])
    return _prompts(*_source(config, base_dir), images, wanted)


def named_images(config: PromptsConfig, *, base_dir: Path, mode: Mode, reference: bool = False) -> Iterator[tuple[str, str]]:
    """Input images that the source names, where it does not hold their bytes: the cell, for errors, and the path or URL in it.

    No image is read. Raises PromptError on a source that is missing or cannot be read.
    """
    if not (wanted := roles(mode, reference=reference)):
        return
    rows, where, unit = _source(config, base_dir)
    for shown, row in rows:
        for name in map(column, wanted):
            found = bytes_or_path(row.get(name))
            if isinstance(found, str) and found:
                yield f"{where}: {unit} {shown}: {name}", found


def _source(config: PromptsConfig, base_dir: Path) -> tuple[Iterable[_Row], str, str]:
    """The rows of a source; in errors, its name and that of a row."""
    if config.texts is not None:
        return enumerate({"prompt": text} for text in config.texts), "prompts.texts", "entry"
    if config.template is not None:
        return template_rows(config, base_dir=base_dir), "prompts.template", "combination"
    assert config.file is not None  # PromptsConfig demands one of the three
    path = in_folder(base_dir, config.file)
    if path.is_dir():
        return dataset_rows(path), str(path), "row"
    if not path.is_file():
        raise PromptError(f"{path}: there is no such prompt file; 'prompts' is relative to the configuration file's folder")
    readers = {".txt": _txt, ".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise PromptError(f"{path}: {path.suffix or 'no suffix'} is not a prompt format; use one of: {' '.join(readers)}")
    return reader(path), str(path), "row" if reader is _parquet else "line"


def _prompts(rows: Iterable[_Row], where: str, unit: str, images: InputReader, wanted: _Wanted) -> Iterator[Prompt]:
    number = -1
    for number, (shown, row) in enumerate(rows):
        yield _prompt(row, number, f"{where}: {unit} {shown}", images, wanted)
    if number < 0:
        raise PromptError(f"{where}: holds no prompts; write at least one")


def _prompt(row: Mapping[str, object], number: int, where: str, images: InputReader, wanted: _Wanted) -> Prompt:
    text = row.get("prompt")
    if not isinstance(text, str):
        found = f"'prompt' is {text!r}" if "prompt" in row else f"no 'prompt' among the columns {', '.join(map(str, row)) or '(none)'}"
        raise PromptError(f"{where}: {found}; every row needs a text in the column 'prompt'")
    if not text.strip():
        raise PromptError(f"{where}: the prompt is empty; write a text or take the row out")
    if problem := wanted.problem(text):
        raise PromptError(f"{where}: the prompt {problem}; change it or take the row out")
    given = row.get("id")
    tags = {str(k): _tag(v) for k, v in row.items() if k not in PROMPT_COLUMNS and v is not None}
    return Prompt(
        id=f"{number:06d}" if given in (None, "") else str(given),
        text=_encodable(text, where),
        negative=_optional(row.get("negative_prompt")),
        label=_optional(row.get("label")),
        tags=tags,
        sampling={name: _setting(name, row[name], where) for name in SAMPLING_COLUMNS if row.get(name) not in (None, "")},
        images=_images(row, where, images, wanted),
    )


def _setting(name: str, value: object, where: str) -> int | float:
    """A field of SamplingConfig that a row sets for itself."""
    kind = int if name in ("steps", "width", "height") else float
    try:
        number = kind(value) if isinstance(value, str | int | float) else value
        if isinstance(value, float) and number != value:
            raise ValueError
        return getattr(SamplingConfig.model_validate({"mode": "image-to-image", name: number}), name)
    except ValidationError as error:
        problem = error.errors()[0]["msg"].replace("Input should be", "must be")
        raise PromptError(f"{where}: {name} is {value!r}: {problem[0].lower()}{problem[1:]}") from None
    except ValueError:
        raise PromptError(
            f"{where}: {name} is {value!r}; write {'a whole number' if kind is int else 'a number'} or leave it empty"
        ) from None


def _images(row: Mapping[str, object], where: str, images: InputReader, wanted: _Wanted) -> dict[Role, InputImage]:
    """The input images of a row: exactly those that are wanted."""
    found: dict[Role, InputImage] = {}
    for role in ROLES:
        name, value = column(role), row.get(column(role))
        given = value not in (None, "", b"")
        if role in wanted.roles and not given:
            needs = f"sampling.mode {wanted.mode}" if role in INPUTS[wanted.mode] else "model.ip_adapter"
            raise PromptError(f"{where}: {name} is missing; {needs} needs one in every row")
        if given and role not in wanted.roles:
            remedy = "give model.ip_adapter" if role == "reference" else "set the mode that it is for"
            raise PromptError(f"{where}: {name} is of no use to sampling.mode {wanted.mode}; {remedy}, or rename the column")
        if given:
            found[role] = images.read(value, f"{where}: {name}")
    return found


def _encodable(text: str, where: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(f"{where}: character {error.start} is half of a surrogate pair; write the whole character") from None
    return text


def _optional(value: object) -> str | None:
    return None if value in (None, "") else str(value)


def _tag(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines from 1, decoded one by one so that a bad byte can be placed."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise PromptError(
                    f"{path}: line {number}: byte {error.start + 1} (0x{raw[error.start]:02x}) is not UTF-8; save the file as UTF-8"
                ) from None
            yield number, text


def _txt(path: Path) -> Iterator[_Row]:
    for number, line in _lines(path):
        if text := line.strip():
            yield number, {"prompt": text}


def _csv(path: Path) -> Iterator[_Row]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader((line for _, line in _lines(path)), restkey="", strict=True)
    try:
        for row in reader:
            if "" in row:
                raise PromptError(f"{path}: line {reader.line_num}: more cells than columns in the header; quote cells that hold commas")
            yield reader.line_num, {key: value or None for key, value in row.items()}
    except csv.Error as error:
        raise PromptError(f"{path}: line {reader.reader.line_num}: not valid CSV: {error}") from None


def _jsonl(path: Path) -> Iterator[_Row]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise PromptError(f"{path}: line {number}: not valid JSON: {error}") from None
        if isinstance(row, str):
            row = {"prompt": row}
        if not isinstance(row, dict):
            raise PromptError(f"{path}: line {number}: is a {type(row).__name__}; each line is an object with the key 'prompt'")
        yield number, row


def _parquet(path: Path) -> Iterator[_Row]:
    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    yield number, row
                    number += 1
    except (pa.ArrowInvalid, OSError) as error:
        raise PromptError(f"{path}: not a readable Parquet file: {str(error).splitlines()[0]}") from None
