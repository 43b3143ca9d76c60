"""Loads a transformers model with its processor, for scorers that are built on one."""

from typing import Any

import torch
import transformers

from pipeline.scorers.resolve import ScorerCard
from schemas.errors import ModelError


def load_transformer(card: ScorerCard, kind: Any, *, dtype: torch.dtype | str) -> tuple[Any, Any]:
    """The card's model, by one of transformers' classes, on the GPU if there is one, and its processor.

    Only safetensors are read, no code that comes with the model is run, and nothing is downloaded. Raises ModelError if the parts do not
    fit together, or if weights are missing, which transformers would fill with random ones.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    where = f"scorers.{card.name}: {card.model}"
    safe = {"local_files_only": True, "trust_remote_code": False}
    try:
        processor = transformers.AutoProcessor.from_pretrained(card.folder, **safe)
        model, found = kind.from_pretrained(card.folder, use_safetensors=True, dtype=dtype, output_loading_info=True, **safe)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{where} cannot be loaded ({reason}); copy or download it again, or give another model") from error
    missing = sorted([*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])])
    if missing:
        raise ModelError(f"{where} cannot be loaded (no weights for {missing[0]}); copy or download it again, or give another model")
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), processor
