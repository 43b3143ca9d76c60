"""Lays LoRA weights, embeddings and an IP-Adapter over a loaded pipeline, and makes sure that all of them were taken.

diffusers warns, at most, about weights that it finds no place for, and goes on without them; here they are refused.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from diffusers.models.embeddings import ImageProjection
from safetensors.torch import load_file
from transformers import CLIPVisionModelWithProjection

from pipeline.models.addons import SDXL_EMBEDDINGS, Addon
from schemas.config import IpAdapterConfig
from schemas.errors import ModelError

MISFITS = (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, ImportError)
"""What diffusers, transformers and peft raise where names or shapes do not match."""


def add_loras(pipe: Any, loras: Sequence[Addon]) -> None:
    """Load LoRA weights, unfused: with a scale of 0 an image is what it is without them, bit by bit. Raises ModelError."""
    for number, lora in enumerate(loras):
        try:
            placed, wanted = _load_lora(pipe, lora, f"lora{number}")
        except MISFITS as error:
            raise _unfit(pipe, "loras", lora, _reason(error)) from error
        if placed < wanted or not wanted:
            raise _unfit(pipe, "loras", lora, f"{placed} of its {wanted} tensors have a place there")
    if loras:
        pipe.set_adapters([f"lora{number}" for number in range(len(loras))], [lora.scale for lora in loras])


def _load_lora(pipe: Any, lora: Addon, adapter: str) -> tuple[int, int]:
    """Tensors that the pipeline has for the adapter, and those of the file."""
    source = {"weight_name": Path(lora.path).name, "local_files_only": True, "use_safetensors": True}
    folder = str(Path(lora.path).parent)
    if not hasattr(pipe, "load_lora_weights"):
        raise ValueError("it takes no LoRA")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # of a second one, which is meant
        pipe.load_lora_weights(folder, adapter_name=adapter, **source)
    state = pipe.lora_state_dict(folder, **source)
    names = state[0] if isinstance(state, tuple) else state
    wanted = sum(1 for name in names if ("lora" in name or "lokr" in name) and not name.endswith("alpha"))
    parts = [part for part in pipe.components.values() if hasattr(part, "named_parameters")]
    return sum(1 for part in parts for name, _ in part.named_parameters() if f".{adapter}" in name), wanted


def add_embeddings(pipe: Any, embeddings: Sequence[Addon]) -> None:
    """Load textual-inversion embeddings under their tokens. Raises ModelError."""
    for one in embeddings:
        try:
            _load_embedding(pipe, one)
        except MISFITS as error:
            raise _unfit(pipe, "embeddings", one, _reason(error)) from error


def _load_embedding(pipe: Any, one: Addon) -> None:
    if not hasattr(pipe, "load_textual_inversion"):
        raise ValueError("it takes no embeddings")
    for key, tensor in load_file(one.path).items():
        encoder = SDXL_EMBEDDINGS.get(key, "text_encoder")
        part, tokenizer = getattr(pipe, encoder, None), getattr(pipe, encoder.replace("text_encoder", "tokenizer"), None)
        if part is None or tokenizer is None:
            raise ValueError(f"it has no {encoder}")
        width = part.get_input_embeddings().weight.shape[-1]
        if tensor.shape[-1] != width:
            raise ValueError(f"its vectors have {tensor.shape[-1]} numbers, those of the {encoder} {width}")
        if key not in SDXL_EMBEDDINGS and getattr(pipe, "text_encoder_2", None) is not None:
            raise ValueError(f"it has two text encoders, the file only one tensor; {' and '.join(SDXL_EMBEDDINGS)} are needed")
        pipe.load_textual_inversion(tensor, token=one.token, text_encoder=part, tokenizer=tokenizer)


def add_ip_adapter(pipe: Any, adapter: Addon, config: IpAdapterConfig) -> None:
    """Load it and the CLIP that reads its images. Raises ModelError."""
    folder, name = PurePosixPath(config.file).parent, PurePosixPath(config.file).name
    source = {"subfolder": str(folder), "weight_name": name, "local_files_only": True}
    encoder = {"pretrained_model_name_or_path": adapter.path, "subfolder": config.image_encoder, "local_files_only": True}
    try:
        reader = CLIPVisionModelWithProjection.from_pretrained(**encoder, use_safetensors=True, dtype=pipe.unet.dtype)
        pipe.register_modules(image_encoder=reader)
        pipe.load_ip_adapter(adapter.path, **source)
        pipe.prepare_ip_adapter_image_embeds = _as_given
    except MISFITS as error:
        raise _unfit(pipe, "ip_adapter", adapter, _reason(error)) from error


def _as_given(_image: None, embeddings: list[torch.Tensor], *_: object) -> list[torch.Tensor]:
    """In the place of the pipeline's own, which takes all for one image's and repeats them for each of a batch, so that they would mix."""
    return embeddings


def reference_embeddings(pipe: Any, references_HWC: Sequence[np.ndarray], *, guided: bool) -> list[torch.Tensor]:
    """What ``ip_adapter_image_embeds`` takes: (N, 1, ...), with guidance (2 * N, 1, ...), those of no image first.

    Each image is read alone, so that its neighbours leave no trace in the last bits.
    """
    [layer] = pipe.unet.encoder_hid_proj.image_projection_layers
    hidden = not isinstance(layer, ImageProjection)  # kinds that read more of CLIP than its summary
    with torch.inference_mode():
        pairs = [pipe.encode_image(image, pipe._execution_device, 1, hidden) for image in references_HWC]
    given, none = (torch.cat(each)[:, None] for each in zip(*pairs, strict=True))
    return [torch.cat([none, given]) if guided else given]


def _unfit(pipe: Any, key: str, one: Addon, reason: str) -> ModelError:
    return ModelError(
        f"model.{key} {one.name}: does not fit {type(pipe).__name__} ({reason}); give one that was made for this kind of model"
    )


def _reason(error: Exception) -> str:
    """The first line that says something: torch begins with a heading."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    found = lines[1] if len(lines) > 1 and lines[0].endswith(":") else lines[0] if lines else type(error).__name__
    return found[:200]
