"""From a scorer's entry in the configuration to a card that says what to load, and its identity.

No torch, except that the published names of open_clip (``ViT-B-32/laion2b_s34b_b79k``) are looked up in open_clip itself.
"""

import difflib
import hashlib
import importlib.util
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.digests import file_sha256
from pipeline.weights import (
    PICKLES,
    PINNED,
    check_pinned,
    check_safetensors,
    fingerprint,
    hub_snapshot,
    only_pickles,
    pickle_refused,
    read_json,
)
from schemas.config import ScorerConfig
from schemas.errors import ModelError

SCORERS: dict[str, str] = {
    "clip": "pipeline.scorers.clip:ClipScorer",
    "choice": "pipeline.scorers.choice:ChoiceScorer",
    "aesthetic": "pipeline.scorers.aesthetic:AestheticScorer",
    "sharpness": "pipeline.scorers.pixels:Sharpness",
    "entropy": "pipeline.scorers.pixels:Entropy",
    "clipped": "pipeline.scorers.pixels:Clipped",
}
DEMO = Path(__file__).parents[1] / "models" / "demo" / "weights" / "clip"
CONFIG = "open_clip_config.json"
_PREFERRED = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")  # taken by open_clip before any pickle
_FROM_HUB = (CONFIG, *_PREFERRED, "tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "*.model")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerCard:
    """All that is needed to load a scorer; plain values, recorded in ``job.yaml``.

    ``name`` is the key in the configuration and names the columns; ``version`` identifies model and weights;
    ``target`` is the class, ``module:Class``; ``folder`` is where its weights, or its module, lie on this machine;
    ``choices`` and ``head``, a file, are for the types that have them.
    """

    name: str
    type: str
    version: str
    target: str
    model: str | None
    folder: str | None
    choices: dict[str, list[str]] = field(default_factory=dict)
    head: str | None = None


def resolve_scorer(name: str, config: ScorerConfig, *, base_dir: Path) -> ScorerCard:
    """Find a scorer and check its files. Paths are relative to ``base_dir``. Raises ModelError."""
    for key, type_ in (("choices", "choice"), ("head", "aesthetic")):
        if bool(getattr(config, key)) != (config.type == type_):
            raise ModelError(f"scorers.{name}: {key!r} and the type {type_!r} belong together; give both or neither")
    if config.type == "clip":
        return _clip(name, config, base_dir)
    if config.type == "choice":
        return _choice(name, config, base_dir)
    if config.type == "aesthetic":
        return _aesthetic(name, config, base_dir)
    if config.type in SCORERS:
        if config.model:
            raise ModelError(f"scorers.{name}: {config.type} looks at pixels only; take 'model' out")
        version = f"{config.type}/1"
        return ScorerCard(name=name, type=config.type, version=version, target=SCORERS[config.type], model=None, folder=None)
    if ":" in config.type:
        return _own(name, config, base_dir)
    raise ModelError(
        f"scorers.{name}: unknown type {config.type!r}; {_meant(config.type, SCORERS)}"
        f"built-in: {', '.join(SCORERS)}; a class of your own is written package.module:Class"
    )


def _clip(name: str, config: ScorerConfig, base_dir: Path) -> ScorerCard:
    where = f"scorers.{name}"
    if not config.model:
        raise ModelError(f"{where}: 'model' is missing; give 'demo', NAME/PRETRAINED such as ViT-B-32/laion2b_s34b_b79k, or a local folder")
    where = f"{where}: {config.model}"
    local = DEMO if config.model == "demo" else base_dir / Path(config.model).expanduser()
    if config.model == "demo" and not local.is_dir():
        raise ModelError(f"{where}: the bundled weights are missing from this installation; install promptmill again")
    if local.is_dir():
        files = checked_files(local, where)
        if config.model == "demo":
            check_pinned(local, files, pins=local.parent / PINNED, where=where)
        shown = "demo" if config.model == "demo" else local.resolve().name
        return _card(name, config, version=f"{shown}/{fingerprint(local, files)}", folder=local.resolve())
    folder = clip_from_hub(config.model, revision=None, where=where)
    checked_files(folder, where)
    return _card(name, config, version=f"{config.model}@{folder.name}", folder=folder)  # the snapshot's folder is named by its commit


def _choice(name: str, config: ScorerConfig, base_dir: Path) -> ScorerCard:
    few = [key for key, words in config.choices.items() if len(set(words)) < 2 or not all(words)]
    if few:
        raise ModelError(f"scorers.{name}: choices.{few[0]} needs two different words at least")
    card = _clip(name, config, base_dir)
    digest = hashlib.sha256(json.dumps(config.choices, sort_keys=True).encode()).hexdigest()[:16]
    version = f"choice/1/{card.version}/sha256:{digest}"
    return replace(card, type="choice", target=SCORERS["choice"], version=version, choices=config.choices)


def _aesthetic(name: str, config: ScorerConfig, base_dir: Path) -> ScorerCard:
    card = _clip(name, config, base_dir)
    file = base_dir / Path(config.head or "").expanduser()
    if file.suffix != ".safetensors":
        raise pickle_refused(f"scorers.{name}", file.name)
    check_safetensors(file, where=f"scorers.{name}")
    version = f"aesthetic/1/{card.version}/sha256:{file_sha256(file)[:16]}"
    return replace(card, type="aesthetic", target=SCORERS["aesthetic"], version=version, head=str(file.resolve()))


def _card(name: str, config: ScorerConfig, *, version: str, folder: Path) -> ScorerCard:
    return ScorerCard(name=name, type="clip", version=version, target=SCORERS["clip"], model=config.model, folder=str(folder))


def clip_from_hub(model: str, *, revision: str | None, where: str) -> Path:
    """Folder of one of open_clip's published models, downloaded if need be. Imports open_clip. Raises ModelError."""
    return hub_snapshot(_published_repo(model, where), revision=revision, allow=_FROM_HUB, where=where)


def checked_files(folder: Path, where: str) -> list[str]:
    """Configuration, tokenizer and weight files of an open_clip folder, all checked to be whole. Raises ModelError."""
    if "model_cfg" not in read_json(folder / CONFIG, where=where):
        raise ModelError(f"{where}: {CONFIG} has no 'model_cfg'; give a folder in open_clip's own format")
    weights = _weight_file(folder, where)
    check_safetensors(folder / weights, where=where)
    texts = [path.name for path in folder.iterdir() if path.suffix in (".json", ".txt", ".model")]
    return [*texts, weights]


def _weight_file(folder: Path, where: str) -> str:
    """The file that open_clip will load, which must be a safetensors one."""
    names = sorted(path.name for path in folder.iterdir())
    for preferred in _PREFERRED:
        if preferred in names:
            return preferred
    pickled = only_pickles(names)
    if pickled:
        raise pickle_refused(where, pickled)
    found = [name for name in names if name.endswith(".safetensors")]
    pickles = [name for name in names if name.endswith(PICKLES)]
    if len(found) == 1 and not pickles:
        return found[0]
    if not found:
        raise ModelError(
            f"{where}: no weights: {_PREFERRED[0]} is missing; copy or download it again, or use a model that is published as safetensors"
        )
    raise ModelError(f"{where}: several weight files ({', '.join(found + pickles)}); rename the one to use to {_PREFERRED[0]}")


def _published_repo(model: str, where: str) -> str:
    """Hub repository of one of open_clip's published names. Imports open_clip, hence torch."""
    architecture, _, tag = model.partition("/")
    import open_clip

    published = open_clip.pretrained._PRETRAINED
    if architecture not in published:
        raise ModelError(
            f"{where}: there is no such folder, and open_clip publishes no model {architecture!r};"
            f" {_meant(architecture, published)}give NAME/PRETRAINED, a local folder, or 'demo'"
        )
    source = open_clip.get_pretrained_cfg(architecture, tag) if tag else {}
    if not source:
        raise ModelError(
            f"{where}: open_clip publishes no weights {tag!r} of {architecture}; {_meant(tag, published[architecture])}"
            f"there are: {', '.join(published[architecture])}"
        )
    if not source.get("hf_hub"):
        raise ModelError(
            f"{where}: these weights are published as a pickle only, which runs any code that it contains when it is loaded;"
            " choose weights that are on the hub as safetensors, such as ViT-B-32/laion2b_s34b_b79k"
        )
    return "/".join(str(source["hf_hub"]).split("/")[:2])


def _own(name: str, config: ScorerConfig, base_dir: Path) -> ScorerCard:
    """A class of the user's: in a file next to the configuration, or in an installed package."""
    module, _, _ = config.type.partition(":")
    file = base_dir / (module.replace(".", "/") + ".py")
    try:
        spec = None if file.is_file() else importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    source = file if file.is_file() else Path(spec.origin) if spec and spec.origin else None
    if source is None or not source.is_file():
        raise ModelError(f"scorers.{name}: the module {module!r} is neither installed nor at {file}; install it, or put it there")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    version = f"{config.type}/sha256:{digest}" if config.model is None else f"{config.type}/{config.model}/sha256:{digest}"
    folder = str(base_dir.resolve()) if file.is_file() else None
    return ScorerCard(name=name, type=config.type, version=version, target=config.type, model=config.model, folder=folder)


def _meant(name: str, known: Iterable[str]) -> str:
    lowered = {one.lower(): one for one in known}
    found = difflib.get_close_matches(name.lower(), list(lowered), n=1, cutoff=0.5)
    return f"did you mean {lowered[found[0]]!r}? " if found else ""
