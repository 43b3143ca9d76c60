"""A scorer's card on the machine that loads it: other weights there would give other scores, so the files are compared with the plan's."""

from dataclasses import replace
from pathlib import Path

from pipeline.digests import file_sha256
from pipeline.scorers.clip_files import DEMO, checked_files, clip_from_hub
from pipeline.scorers.resolve import SCORERS, ScorerCard, resolve_scorer
from pipeline.scorers.transformer_files import transformer_files, transformer_from_hub
from pipeline.weights import check_blobs, fingerprint, is_whole
from schemas.config import ScorerConfig
from schemas.errors import ModelError


def on_this_machine(card: ScorerCard, config: ScorerConfig) -> ScorerCard:
    """The card with the folder of this machine, whose files are the plan's. What comes from the hub is downloaded if it is not here.

    Raises ModelError if files are missing, damaged, or others than those that the card was made from.
    """
    where = f"scorers.{card.name}"
    if card.type not in SCORERS or card.type == "nudenet":
        what = "nudenet" if card.type == "nudenet" else f"the class {card.type}"
        _refuse_other(resolve_scorer(card.name, config, base_dir=Path(card.folder or "/")).version, card, what, where)
        return card
    if card.head:
        _refuse_other_head(card, where)
    return replace(card, folder=str(_folder_here(card, Path(card.folder), where))) if card.folder else card


def _folder_here(card: ScorerCard, folder: Path, where: str) -> Path:
    is_clip = card.type not in ("pickscore", "vqascore")
    commit = f"{card.model}@{folder.name}"
    is_hub = commit in card.version
    files_of, from_hub = (checked_files, clip_from_hub) if is_clip else (transformer_files, transformer_from_hub)
    if is_hub and card.model and not is_whole(folder, lambda: files_of(folder, where)):
        folder = from_hub(card.model, revision=folder.name, where=where)
    if card.model == "demo":
        folder = DEMO
    if not folder.is_dir():
        raise ModelError(f"{where}: there is no folder {folder} on this machine; copy it there, or use a published model")
    files = files_of(folder, where)
    if is_hub:
        check_blobs(folder, files, where=where)
    else:
        shown = "demo" if card.model == "demo" else folder.name
        _refuse_other(f"{shown}/{fingerprint(folder, files)}", card, str(folder), where)
    return folder


def _refuse_other(found: str, card: ScorerCard, what: str, where: str) -> None:
    """Versions of scorers that are built on CLIP hold that of the CLIP."""
    if f"/{found}/" not in f"/{card.version}/":
        raise ModelError(f"{where}: {what} is {found} on this machine, the plan was made with {card.version}; copy the same files there")


def _refuse_other_head(card: ScorerCard, where: str) -> None:
    head = Path(card.head or "")
    if not head.is_file():
        raise ModelError(f"{where}: the file {head} is missing on this machine; copy it there")
    if not card.version.endswith(f"/sha256:{file_sha256(head)[:16]}"):
        raise ModelError(f"{where}: {head} is another file than the one that the plan was made with; copy the same file there")
