"""A diffusers model folder: is it whole, is it safe, which of its files get loaded. No torch, no diffusers."""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.weights import check_safetensors, only_pickles, pickle_refused, read_json
from schemas.errors import ModelError

INDEX = "model_index.json"
_STEMS = ("diffusion_pytorch_model", "model")  # what diffusers and transformers call their weight files
_WEIGHTLESS = re.compile(r"(Tokenizer|TokenizerFast|Backend|Scheduler|Processor|ProcessorFast|FeatureExtractor)$")
_CONFIG_SUFFIXES = (".json", ".txt", ".model")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """What ``model_index.json`` and the component folders say.

    ``files`` are all files that get loaded, relative to the folder; ``configs`` hold the components'
    configurations by component name.
    """

    pipeline_class: str
    files: tuple[str, ...]
    configs: dict[str, dict[str, Any]]


def component_names(index: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Components of a ``model_index.json`` that are present: name -> (library, class)."""
    found = {}
    for name, value in index.items():
        if not name.startswith("_") and isinstance(value, list) and len(value) == 2 and value[0] and value[1]:
            found[name] = (str(value[0]), str(value[1]))
    return found


def inspect_folder(folder: Path, *, variant: str | None, where: str) -> ModelFolder:
    """Check a folder through and list what gets loaded. Raises ModelError, naming the file and the remedy."""
    if not (folder / INDEX).is_file():
        raise _no_index(folder, where)
    index = read_json(folder / INDEX, where=where)
    pipeline_class = _checked_class(index, where)
    _refuse_code(folder, where)
    files, configs = [INDEX], {}
    for name, (library, class_name) in component_names(index).items():
        _refuse_library(name, library, where)
        files += _component_files(folder, name, class_name, variant, where)
        configs[name] = _component_config(folder / name, class_name, f"{where}: {name}")
    return ModelFolder(pipeline_class=pipeline_class, files=tuple(sorted(files)), configs=configs)


def needs_weights(class_name: str) -> bool:
    """Whether a component of this class has weights; tokenizers, schedulers and image processors have none."""
    return not _WEIGHTLESS.search(class_name)


def weight_files(folder: Path, *, variant: str | None, where: str) -> list[str]:
    """Names of the safetensors files of one component, with their index if sharded; all checked to be whole.

    As diffusers does, a component that lacks the variant is loaded without it.
    """
    for infix in dict.fromkeys([f".{variant}" if variant else "", ""]):
        for stem in _STEMS:
            single, index = f"{stem}{infix}.safetensors", f"{stem}.safetensors.index{infix}.json"
            if (folder / index).is_file():
                return [index, *_shards(folder, index, where)]
            if (folder / single).is_file():
                check_safetensors(folder / single, where=where)
                return [single]
    names = [path.name for path in folder.iterdir()]
    pickled = only_pickles(names)
    if pickled:
        raise pickle_refused(where, pickled)
    present = ", ".join(sorted(name for name in names if name.endswith(".safetensors")))
    hint = f" (there is: {present}; set model.variant)" if present else ""
    raise ModelError(f"{where}: no weights: {_STEMS[0]}.safetensors or {_STEMS[1]}.safetensors is missing{hint}; copy or download it again")


def _shards(folder: Path, index: str, where: str) -> list[str]:
    weight_map = read_json(folder / index, where=where).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{where}: {index} lists no weight files; copy or download it again")
    shards = sorted({str(name) for name in weight_map.values()})
    for shard in shards:
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise ModelError(
                f"{where}: {index} names {shard!r}, which is no safetensors file of this folder; use another copy of the model"
            )
        check_safetensors(folder / shard, where=where)
    return shards


def _component_files(folder: Path, name: str, class_name: str, variant: str | None, where: str) -> list[str]:
    part = folder / name
    if not part.is_dir():
        raise ModelError(f"{where}: the folder {name}/ ({class_name}), which {INDEX} names, is missing; copy or download the model again")
    configs = [path.name for path in part.iterdir() if path.suffix in _CONFIG_SUFFIXES and ".safetensors.index" not in path.name]
    weights = weight_files(part, variant=variant, where=f"{where}: {name}") if needs_weights(class_name) else []
    return [f"{name}/{file}" for file in configs + weights]


def _component_config(part: Path, class_name: str, where: str) -> dict[str, Any]:
    if needs_weights(class_name):
        return read_json(part / "config.json", where=where)
    if class_name.endswith("Scheduler"):
        return read_json(part / "scheduler_config.json", where=where)
    if not any(path.suffix in _CONFIG_SUFFIXES for path in part.iterdir()):
        raise ModelError(f"{where}: the folder of {class_name} is empty; copy or download the model again")
    for path in part.glob("*.json"):
        read_json(path, where=where) if path.name != "merges.json" else None
    return {}


def _checked_class(index: dict[str, Any], where: str) -> str:
    name = index.get("_class_name")
    if not isinstance(name, str) or "Pipeline" not in name or not diffusers_has(name):
        raise ModelError(
            f"{where}: {INDEX} wants the pipeline {name!r}, which is none of the installed diffusers;"
            " code that comes with a model is never run: use a model of a diffusers pipeline, or a newer diffusers"
        )
    return name


def _refuse_code(folder: Path, where: str) -> None:
    code = next(iter(sorted([*folder.glob("*.py"), *folder.glob("*/*.py")])), None)
    if code:
        raise ModelError(
            f"{where}: the folder brings code, {code.relative_to(folder).as_posix()}, and code that comes with a model is never run;"
            " if the model works without it, delete the file"
        )


def _refuse_library(component: str, library: str, where: str) -> None:
    if library not in ("diffusers", "transformers") and not (_diffusers_folder() / "pipelines" / library).is_dir():
        raise ModelError(
            f"{where}: component {component} comes from {library!r}, which is neither diffusers nor transformers;"
            " code that comes with a model is never run: use a model of stock components"
        )


def _no_index(folder: Path, where: str) -> ModelError:
    names = [path.name for path in folder.iterdir()]
    pickled = only_pickles(names)
    if pickled:
        return pickle_refused(where, pickled)
    return ModelError(
        f"{where}: {INDEX} is missing, so this is no diffusers model folder; give the folder that holds it"
        " (a single checkpoint file becomes one with DiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER))"
    )


def _diffusers_folder() -> Path:
    spec = importlib.util.find_spec("diffusers")  # finds the package without importing it
    if spec is None or spec.origin is None:
        raise ModelError("diffusers is not installed; run: pip install diffusers")
    return Path(spec.origin).parent


def diffusers_has(name: str) -> bool:
    """Whether diffusers has a class of this name, read from its source: importing it takes seconds."""
    return name.isidentifier() and f'"{name}"' in (_diffusers_folder() / "__init__.py").read_text(encoding="utf-8")
