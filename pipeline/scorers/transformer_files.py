"""Folders of transformers models that scorers load: which of their files get loaded, whole and safe; where published ones come from.

No torch.
"""

from pathlib import Path

from pipeline.models.folder import weight_files
from pipeline.weights import hub_snapshot, read_json
from schemas.errors import ModelError

CONFIG = "config.json"
_TEXTS = (".json", ".txt", ".model", ".jinja")
_FROM_HUB = ("*.json", "*.txt", "*.model", "*.jinja", "model*.safetensors")


def transformer_files(folder: Path, where: str) -> list[str]:
    """Configuration, tokenizer, processor and weight files of a transformers folder, all checked to be whole. Raises ModelError."""
    if "model_type" not in read_json(folder / CONFIG, where=where):
        raise ModelError(f"{where}: {CONFIG} has no 'model_type'; give a folder in transformers' own format")
    texts = [path.name for path in folder.iterdir() if path.suffix in _TEXTS and ".index." not in path.name]
    return [*texts, *weight_files(folder, variant=None, where=where)]


def transformer_from_hub(repo: str, *, revision: str | None, where: str) -> Path:
    """Folder of a model of the hub, downloaded if need be. Raises ModelError."""
    return hub_snapshot(repo, revision=revision, allow=_FROM_HUB, where=where)
