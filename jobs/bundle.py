"""What travels with a submitted job: its configuration, its prompt file, its own scorers. What cannot travel is refused by name."""

import shlex
import shutil
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from pipeline.models.resolve import BUNDLED
from pipeline.prompts import named_images, read_prompts
from pipeline.scorers.own_files import imported_files, own_file
from pipeline.store import is_url
from schemas.config import JobConfig, in_folder
from schemas.config_load import load
from schemas.errors import ConfigError
from schemas.modes import roles

LARGEST_BYTES = 100 * 1024**2  # what Ray takes as a job's files without complaint
CONFIG = "job.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """Files in a folder of their own, the command that runs there, and where the dataset goes."""

    folder: Path
    command: str
    out: str


def bundle(config_path: Path, folder: Path, *, out: str | None = None, overrides: Sequence[str] = ()) -> Bundle:
    """Gather a job's files in ``folder``. Raises UserError if a machine of the cluster could not see all that it needs."""
    config = load(config_path, overrides)
    base_dir = config_path.resolve().parent
    where = _output(out or config.output.dir)
    raw = config.model_dump(mode="json")
    raw["output"]["dir"] = where
    raw["executor"] |= {"kind": "ray", "address": "auto"}
    _refuse_local(config, base_dir)
    if config.prompts.file:
        source = in_folder(base_dir, config.prompts.file)
        _copy(source, folder / source.name, "prompts.file")
        raw["prompts"]["file"] = source.name
        _check_prompts(config, base_dir, folder)
    if config.prompts.template and in_folder(base_dir, config.prompts.wildcards).is_dir():
        _copy(in_folder(base_dir, config.prompts.wildcards), folder / "wildcards", "prompts.wildcards")
        raw["prompts"]["wildcards"] = "wildcards"
    for name, scorer in config.scorers.items():
        module = scorer.type.partition(":")[0]
        file = own_file(module, base_dir)
        if ":" in scorer.type and file.is_file():
            for source in (file, *(found for found in imported_files(module, base_dir).values() if found.is_file())):
                _copy(source, folder / source.relative_to(base_dir), f"scorers.{name}")
        if scorer.head:
            source = in_folder(base_dir, scorer.head)
            raw["scorers"][name]["head"] = f"{name}-{source.name}"
            _copy(source, folder / raw["scorers"][name]["head"], f"scorers.{name}.head")
    (folder / CONFIG).write_text(yaml.safe_dump(raw, sort_keys=False, allow_unicode=True))
    return Bundle(folder=folder, command=shlex.join(["promptmill", "run", CONFIG, "--out", where]), out=where)


def _output(out: str | None) -> str:
    if out is None:
        raise ConfigError(
            "--out: a submitted job needs a place for its dataset that every machine sees: s3://bucket/folder, or an absolute path"
        )
    if not is_url(out) and not Path(out).is_absolute():
        raise ConfigError(
            f"--out {out}: lies on this machine; give s3://bucket/folder, or an absolute path that every machine of the cluster sees"
        )
    return out


def _refuse_local(config: JobConfig, base_dir: Path) -> None:
    """Model folders are too large to travel; they may be named by an absolute path."""
    model = config.model
    addons = {"loras": model.loras, "embeddings": model.embeddings, "vae": [model.vae], "second_stage": [model.second_stage]}
    addons |= {"controlnet": [model.controlnet], "ip_adapter": [model.ip_adapter]}
    named = [("model.id", model.id), *((f"scorers.{name}.model", card.model) for name, card in config.scorers.items() if card.model)]
    named += [(f"model.{name}", one.id) for name, given in addons.items() for one in given if one]
    for key, value in named:
        if value not in BUNDLED and not Path(value).is_absolute() and in_folder(base_dir, value).exists():
            raise ConfigError(
                f"{key} {value}: is on this machine, and weights do not travel; give a hub name,"
                " or an absolute path that every machine of the cluster sees"
            )


def _check_prompts(config: JobConfig, base_dir: Path, folder: Path) -> None:
    """Every row is read, where it needs no input image. Of images, which the head of the cluster reads, only the names are:
    they may be bytes of the prompt file, objects of a store, or files that the head sees; others do not travel.
    """
    mode, reference = config.sampling.mode, config.model.ip_adapter is not None
    if not roles(mode, reference=reference):
        deque(read_prompts(config.prompts, base_dir=base_dir, mode=mode), maxlen=0)
        return
    shared = [path for path in config.prompts.image_folders if Path(path).is_absolute()]
    for cell, name in named_images(config.prompts, base_dir=base_dir, mode=mode, reference=reference):
        seen = any(Path(name).is_relative_to(path) for path in shared) if Path(name).is_absolute() else (folder / name).is_file()
        if not seen and not is_url(name):
            raise ConfigError(
                f"{cell} {name}: is on this machine, and input images do not travel; put them into cells of a Parquet file or an object"
                " store, or give absolute paths in a folder of prompts.image_folders that the head of the cluster sees"
            )


def _copy(source: Path, target: Path, key: str) -> None:
    try:
        num_bytes = sum(file.stat().st_size for file in (source.rglob("*") if source.is_dir() else (source,)))
        if num_bytes > LARGEST_BYTES:
            raise ConfigError(
                f"{key} {source}: {num_bytes / 1024**2:,.0f} MiB are too many to travel with a job (at most {LARGEST_BYTES // 1024**2});"
                " put the file where every machine sees it and run 'promptmill run' on the head instead"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)
    except OSError as error:
        raise ConfigError(f"{key} {source}: cannot be read: {error.strerror}; it must travel with the job") from None
