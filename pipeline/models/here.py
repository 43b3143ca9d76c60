"""A model's card on the machine that loads it, which may be another one than that which planned.

A node with another copy of a model would draw other images, and nothing would tell: so the files are compared with the plan's.
"""

from dataclasses import replace
from pathlib import Path

from pipeline.models.addons import addons_here
from pipeline.models.folder import inspect_folder
from pipeline.models.resolve import (
    BUNDLED,
    ENDPOINT,
    WEIGHTS,
    ModelCard,
    controlnet_files,
    controlnet_from_hub,
    controlnet_revision,
    from_hub,
    second_stage_config,
)
from pipeline.weights import check_blobs, fingerprint, is_whole
from schemas.config import ModelConfig
from schemas.errors import ModelError


def on_this_machine(card: ModelCard, config: ModelConfig) -> ModelCard:
    """The card with the folders of this machine, whose files are the plan's. What comes from the hub is downloaded if it is not here.

    Raises ModelError if files are missing, damaged, or others than those that the card was made from.
    """
    if card.pipeline_class == ENDPOINT:
        return card
    planned, *more = card.revision.split("+")
    card = replace(card, folder=str(_model_here(card, config, planned)), addons=addons_here(card.addons, config))
    if card.second_stage:
        card = replace(card, second_stage=on_this_machine(card.second_stage, second_stage_config(config)))
    return replace(card, controlnet=str(_controlnet_here(Path(card.controlnet), config, more[0]))) if card.controlnet else card


def _model_here(card: ModelCard, config: ModelConfig, planned: str) -> Path:
    where, is_hub = f"model {card.name}", not planned.startswith("sha256:")
    folder = WEIGHTS / BUNDLED[config.id] if config.id in BUNDLED else Path(card.folder)
    if is_hub and not is_whole(folder, lambda: inspect_folder(folder, variant=config.variant, where=where)):
        folder = from_hub(config.model_copy(update={"revision": planned}), where)
    _refuse_missing(folder, where)
    found = inspect_folder(folder, variant=config.variant, where=where)
    if is_hub:
        check_blobs(folder, found.files, where=where)
    else:
        _refuse_other(fingerprint(folder, found.files), planned, folder, where)
    return folder


def _controlnet_here(folder: Path, config: ModelConfig, planned: str) -> Path:
    assert config.controlnet is not None
    where = f"model.controlnet {config.controlnet.id}"
    if config.controlnet.id == "demo":
        folder = WEIGHTS / "controlnet"
    elif (
        folder.parent.name == "snapshots"  # of the hub's cache, named by its commit
        and not is_whole(folder, lambda: controlnet_files(folder, config))
    ):
        folder = controlnet_from_hub(config.controlnet.id, revision=folder.name)
    _refuse_missing(folder, where)
    _refuse_other(controlnet_revision(folder, config), planned, folder, where)
    return folder


def _refuse_missing(folder: Path, where: str) -> None:
    if not folder.is_dir():
        raise ModelError(f"{where}: there is no folder {folder} on this machine; copy it there, or use a model of the hub")


def _refuse_other(found: str, planned: str, folder: Path, where: str) -> None:
    if found != planned:
        raise ModelError(f"{where}: {folder} is {found} on this machine, the plan was made with {planned}; copy the same files there")
