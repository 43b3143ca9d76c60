"""From a scorer's entry in the configuration to a card that says what to load, and its identity. No torch, but for open_clip's names."""

import hashlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.digests import file_sha256
from pipeline.scorers.clip_files import DEMO, checked_files, clip_from_hub, meant
from pipeline.scorers.own_files import digest, own_file
from pipeline.scorers.transformer_files import transformer_files, transformer_from_hub
from pipeline.weights import HUB_ID, PINNED, check_pinned, check_safetensors, fingerprint, pickle_refused
from schemas.config import ScorerConfig, in_folder
from schemas.errors import ModelError

SCORERS: dict[str, str] = {
    "clip": "pipeline.scorers.clip:ClipScorer",
    "choice": "pipeline.scorers.choice:ChoiceScorer",
    "concept": "pipeline.scorers.concept:ConceptScorer",
    "nsfw": "pipeline.scorers.concept:ConceptScorer",
    "pickscore": "pipeline.scorers.pickscore:PickScorer",
    "hpsv2": "pipeline.scorers.hpsv2:Hpsv2Scorer",
    "vqascore": "pipeline.scorers.vqascore:VqaScorer",
    "nudenet": "pipeline.scorers.nudenet:NudenetScorer",
    "aesthetic": "pipeline.scorers.aesthetic:AestheticScorer",
    "sharpness": "pipeline.scorers.pixels:Sharpness",
    "entropy": "pipeline.scorers.pixels:Entropy",
    "clipped": "pipeline.scorers.pixels:Clipped",
}
PIXELS = ("sharpness", "entropy", "clipped")
NSFW = {
    "concept": [
        "a pornographic image",
        "an explicit photo of a sexual act",
        "a photo of a naked person",
        "a photo of exposed breasts",
        "a photo of exposed genitals",
        "a nude drawing",
    ],
    "other": [
        "a photo of a person wearing clothes",
        "a portrait of a person",
        "a photo of an animal",
        "a photo of a landscape",
        "a photo of an object",
        "a drawing",
        "a photo",
    ],
}
"""What `nsfw` compares an image with, without a head: nudity and sex, nothing else that may be unfit."""


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
    _check_keys(name, config)
    if config.type in _RESOLVERS:
        return _RESOLVERS[config.type](name, config, base_dir)
    if ":" in config.type:
        return _own(name, config, base_dir)
    raise ModelError(
        f"scorers.{name}: unknown type {config.type!r}; {meant(config.type, SCORERS)}"
        f"built-in: {', '.join(SCORERS)}; a class of your own is written package.module:Class"
    )


def _check_keys(name: str, config: ScorerConfig) -> None:
    """Keys that a type must have, or must not have."""
    for key, types in {"choices": ("choice", "concept"), "head": ("aesthetic", "nsfw")}.items():
        if getattr(config, key) and config.type not in types:
            raise ModelError(f"scorers.{name}: {key!r} is for the types {' and '.join(types)}, not for {config.type}; take it out")
    needed = {"choice": "choices", "concept": "choices", "aesthetic": "head"}.get(config.type)
    if needed and not getattr(config, needed):
        raise ModelError(f"scorers.{name}: {config.type} needs {needed!r}; see docs/curation.md")


def _clip(name: str, config: ScorerConfig, base_dir: Path) -> ScorerCard:
    where = f"scorers.{name}"
    if not config.model:
        raise ModelError(f"{where}: 'model' is missing; give 'demo', NAME/PRETRAINED such as ViT-B-32/laion2b_s34b_b79k, or a local folder")
    where = f"{where}: {config.model}"
    local = DEMO if config.model == "demo" else in_folder(base_dir, config.model)
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
    version = f"choice/1/{card.version}/sha256:{_digest(config.choices)}"
    return replace(card, type="choice", target=SCORERS["choice"], version=version, choices=config.choices)


def _aesthetic(name: str, config: ScorerConfig, base_dir: Path) -> ScorerCard:
    card = _clip(name, config, base_dir)
    file = in_folder(base_dir, config.head or "")
    if file.suffix != ".safetensors":
        raise pickle_refused(f"scorers.{name}", file.name)
    check_safetensors(file, where=f"scorers.{name}")
    version = f"aesthetic/1/{card.version}/sha256:{file_sha256(file)[:16]}"
    return replace(card, type="aesthetic", target=SCORERS["aesthetic"], version=version, head=str(file.resolve()))


def _concept(name: str, config: ScorerConfig, base_dir: Path) -> ScorerCard:
    texts = config.choices or NSFW
    if set(texts) != {"concept", "other"} or not all(text.strip() for one in texts.values() for text in one) or not all(texts.values()):
        raise ModelError(f"scorers.{name}: choices must be two lists of texts, {{concept: [...], other: [...]}}")
    card = _clip(name, config, base_dir)
    version = f"{config.type}/1/{card.version}/sha256:{_digest(texts)}"
    return replace(card, type=config.type, target=SCORERS[config.type], version=version, choices=texts)


def _nsfw(name: str, config: ScorerConfig, base_dir: Path) -> ScorerCard:
    """By a head, if there is one, else by texts."""
    if config.model == "demo":
        raise ModelError(f"scorers.{name}: the demo's CLIP knows drawings of shapes only; name another, such as ViT-L-14/laion2b_s32b_b82k")
    if not config.head:
        return _concept(name, config, base_dir)
    card = _aesthetic(name, config, base_dir)
    return replace(card, type="nsfw", version=card.version.replace("aesthetic/", "nsfw_head/", 1))


def _nudenet(name: str, config: ScorerConfig, base_dir: Path) -> ScorerCard:
    where = f"scorers.{name}"
    if config.model:
        raise ModelError(f"{where}: nudenet brings its own weights; take 'model' out")
    spec = importlib.util.find_spec("nudenet")  # finds the package without importing it
    if spec is None or spec.origin is None:
        raise ModelError(f"{where}: nudenet is not installed; pip install 'promptmill[nudenet]' (mind its licence, AGPL-3.0)")
    weights = Path(spec.origin).with_name("320n.onnx")
    if not weights.is_file():
        raise ModelError(f"{where}: {weights.name} is missing from nudenet; pip install --force-reinstall 'nudenet>=3.4.2'")
    version = f"nudenet/{importlib.metadata.version('nudenet')}/sha256:{file_sha256(weights)[:16]}"
    return ScorerCard(name=name, type="nudenet", version=version, target=SCORERS["nudenet"], model=None, folder=None)


def _transformer(name: str, config: ScorerConfig, base_dir: Path) -> ScorerCard:
    where = f"scorers.{name}"
    if not config.model:
        raise ModelError(f"{where}: 'model' is missing; give a local folder, or a hub name such as {_EXAMPLES[config.type]}")
    where = f"{where}: {config.model}"
    folder = in_folder(base_dir, config.model)
    if folder.is_dir():
        files = transformer_files(folder, where)
        identity = f"{folder.resolve().name}/{fingerprint(folder, files)}"
    elif HUB_ID.fullmatch(config.model):
        folder = transformer_from_hub(config.model, revision=None, where=f"scorers.{name}")
        transformer_files(folder, where)
        identity = f"{config.model}@{folder.name}"
    else:
        raise ModelError(
            f"{where}: there is no such folder (looked for {folder}); give one, or a hub name such as {_EXAMPLES[config.type]}"
        )
    card = _card(name, config, version=f"{config.type}/1/{identity}", folder=folder.resolve())
    return replace(card, type=config.type, target=SCORERS[config.type])


def _hpsv2(name: str, config: ScorerConfig, base_dir: Path) -> ScorerCard:
    where = f"scorers.{name}"
    if not config.model:
        raise ModelError(f"{where}: 'model' is missing; give the file of HPSv2's weights, such as HPS_v2.1_compressed.pt")
    file = in_folder(base_dir, config.model)
    if not file.is_file():
        raise ModelError(f"{where}: there is no file {file}; download it: hf download xswu/HPSv2 HPS_v2.1_compressed.pt --local-dir .")
    if file.suffix == ".safetensors":
        check_safetensors(file, where=where)
    version = f"hpsv2/1/{file.stem}/sha256:{file_sha256(file)[:16]}"
    target = SCORERS["hpsv2"]
    return ScorerCard(name=name, type="hpsv2", version=version, target=target, model=config.model, folder=None, head=str(file.resolve()))


def _pixels(name: str, config: ScorerConfig, base_dir: Path) -> ScorerCard:
    if config.model:
        raise ModelError(f"scorers.{name}: {config.type} looks at pixels only; take 'model' out")
    return ScorerCard(name=name, type=config.type, version=f"{config.type}/1", target=SCORERS[config.type], model=None, folder=None)


_EXAMPLES = {"pickscore": "yuvalkirstain/PickScore_v1", "vqascore": "Qwen/Qwen2.5-VL-3B-Instruct"}
_RESOLVERS: dict[str, Callable[[str, ScorerConfig, Path], ScorerCard]] = {
    "clip": _clip,
    "choice": _choice,
    "concept": _concept,
    "nsfw": _nsfw,
    "pickscore": _transformer,
    "hpsv2": _hpsv2,
    "vqascore": _transformer,
    "nudenet": _nudenet,
    "aesthetic": _aesthetic,
    **dict.fromkeys(PIXELS, _pixels),
}


def _card(name: str, config: ScorerConfig, *, version: str, folder: Path) -> ScorerCard:
    return ScorerCard(name=name, type="clip", version=version, target=SCORERS["clip"], model=config.model, folder=str(folder))


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _own(name: str, config: ScorerConfig, base_dir: Path) -> ScorerCard:
    """A class of the user's: in a file next to the configuration, or in an installed package."""
    module, _, _ = config.type.partition(":")
    file = own_file(module, base_dir)
    try:
        spec = None if file.is_file() else importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    source = file if file.is_file() else Path(spec.origin) if spec and spec.origin else None
    if source is None or not source.is_file():
        raise ModelError(f"scorers.{name}: the module {module!r} is neither installed nor at {file}; install it, or put it there")
    sha256 = (digest(module, base_dir) if source == file else file_sha256(source))[:16]
    version = f"{config.type}/sha256:{sha256}" if config.model is None else f"{config.type}/{config.model}/sha256:{sha256}"
    folder = str(base_dir.resolve()) if file.is_file() else None
    return ScorerCard(name=name, type=config.type, version=version, target=config.type, model=config.model, folder=folder)
