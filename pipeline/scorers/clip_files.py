"""Folders of open_clip models: which of their files get loaded, whole and safe; where published ones come from.

No torch, except that the published names (``ViT-B-32/laion2b_s34b_b79k``) are looked up in open_clip itself.
"""

import difflib
from collections.abc import Iterable
from pathlib import Path

from pipeline.weights import PICKLES, check_safetensors, hub_snapshot, only_pickles, pickle_refused, read_json
from schemas.errors import ModelError

DEMO = Path(__file__).parents[1] / "models" / "demo" / "weights" / "clip"
CONFIG = "open_clip_config.json"
_PREFERRED = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")  # taken by open_clip before any pickle
_FROM_HUB = (CONFIG, *_PREFERRED, "tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "*.model")


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
            f" {meant(architecture, published)}give NAME/PRETRAINED, a local folder, or 'demo'"
        )
    source = open_clip.get_pretrained_cfg(architecture, tag) if tag else {}
    if not source:
        raise ModelError(
            f"{where}: open_clip publishes no weights {tag!r} of {architecture}; {meant(tag, published[architecture])}"
            f"there are: {', '.join(published[architecture])}"
        )
    if not source.get("hf_hub"):
        raise ModelError(
            f"{where}: these weights are published as a pickle only, which runs any code that it contains when it is loaded;"
            " choose weights that are on the hub as safetensors, such as ViT-B-32/laion2b_s34b_b79k"
        )
    return "/".join(str(source["hf_hub"]).split("/")[:2])


def meant(name: str, known: Iterable[str]) -> str:
    """A half-sentence with the nearest of the known names; empty if none is near."""
    lowered = {one.lower(): one for one in known}
    found = difflib.get_close_matches(name.lower(), list(lowered), n=1, cutoff=0.5)
    return f"did you mean {lowered[found[0]]!r}? " if found else ""
