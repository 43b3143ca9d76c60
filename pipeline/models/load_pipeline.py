"""A pipeline of diffusers from its checked folder, with what a job lays over it."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch

from pipeline.models.folder import INDEX, component_names
from pipeline.models.load_addons import MISFITS, add_embeddings, add_ip_adapter, add_loras
from pipeline.models.modes import CONTROLNETS, T2I_ADAPTERS
from pipeline.models.resolve import ModelCard
from pipeline.models.switches import put_on_device
from pipeline.weights import read_json
from schemas.config import ModelConfig
from schemas.errors import ModelError


def load_pipeline(card: ModelCard, config: ModelConfig, others: Mapping[str, Any]) -> Any:
    """The pipeline of a card with its ControlNet and all addons, on the GPU if there is one.

    ``others`` are the parts of the model whose second stage it is, if it is one. Raises ModelError if parts do not fit together.
    """
    kind = getattr(diffusers, card.pipeline_class)
    extra: dict[str, Any] = {"add_watermarker": False} if "add_watermarker" in inspect.signature(kind.__init__).parameters else {}
    try:
        if card.controlnet:
            adapts = card.pipeline_class in T2I_ADAPTERS.values()
            kind_of_net = "T2IAdapter" if adapts else CONTROLNETS[card.pipeline_class]
            extra["adapter" if adapts else "controlnet"] = _part(kind_of_net, card.controlnet, config)
        if card.addons.vae:
            folder = card.addons.vae.path
            extra["vae"] = _part(read_json(Path(folder) / "config.json", where=folder)["_class_name"], folder, config)
        extra |= _borrowed(card, others)
        pipe = kind.from_pretrained(
            card.folder,
            local_files_only=True,
            use_safetensors=True,
            dtype=getattr(torch, config.dtype),
            variant=config.variant,
            **extra,
        )
    except MISFITS as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"model {card.name}: its parts cannot be loaded ({reason}); copy or download it again, or update diffusers"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    if card.addons.ip_adapter and config.ip_adapter:
        add_ip_adapter(pipe, card.addons.ip_adapter, config.ip_adapter)
    add_embeddings(pipe, card.addons.embeddings)
    add_loras(pipe, card.addons.loras)
    return put_on_device(pipe, config.compute)


def _borrowed(card: ModelCard, others: Mapping[str, Any]) -> dict[str, Any]:
    """Another pipeline's text encoder and tokenizer, for a folder that has none, as DeepFloyd IF's later stages."""
    index = read_json(Path(card.folder) / INDEX, where=card.folder)
    if any(name.startswith("text_encoder") for name in component_names(index)):
        return {}
    return {name: others[name] for name in ("text_encoder", "tokenizer") if name in index and others.get(name) is not None}


def _part(class_name: str, folder: str, config: ModelConfig) -> Any:
    """One network of a pipeline, from a folder of its own; the variant only if it has it."""
    variant = config.variant if any(Path(folder).glob(f"*.{config.variant}*.safetensors")) else None
    return getattr(diffusers, class_name).from_pretrained(
        folder, local_files_only=True, use_safetensors=True, torch_dtype=getattr(torch, config.dtype), variant=variant
    )
