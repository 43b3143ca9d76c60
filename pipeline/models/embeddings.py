"""Text embeddings, each made once and alone, and the tokens that a prompt takes.

Encoding one text at a time keeps the batch shape out of its embedding, so the same prompt conditions the same
image whoever its neighbours are, and a prompt that returns costs nothing.
"""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch

Embeddings = dict[str, torch.Tensor]

_CAPACITY = 256  # texts kept; SDXL's take 0.6 MB each in float32
# what encode_prompt returns, in order, as the arguments of __call__ that take it; None is not passed on
_PAIR = ("prompt_embeds", "negative_prompt_embeds")  # Stable Diffusion 1 and 2
_POOLED = (*_PAIR, "pooled_prompt_embeds", "negative_pooled_prompt_embeds")  # SDXL, SD3, Kolors
_UNGUIDED = ("prompt_embeds", "pooled_prompt_embeds", None)  # FLUX


class PromptEncoder:
    """Encodes prompts for one pipeline. ``supported`` is False where its encode_prompt is of another kind."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._returns = _returns(pipe)
        self._kept: OrderedDict[tuple[str, str | None, bool], Embeddings] = OrderedDict()

    @property
    def supported(self) -> bool:
        """Whether embeddings can be handed to the pipeline; else it takes the texts themselves."""
        return self._returns is not None

    def batch(self, prompts: Sequence[str], negatives: Sequence[str | None], *, guided: bool) -> Embeddings:
        """Arguments of ``__call__``: embeddings of the texts, stacked along the batch."""
        each = [self._one(prompt, negative if guided else None, guided) for prompt, negative in zip(prompts, negatives, strict=True)]
        return {name: torch.cat([one[name] for one in each]) for name in each[0]}

    def _one(self, prompt: str, negative: str | None, guided: bool) -> Embeddings:
        key = (prompt, negative, guided)
        if key not in self._kept:
            self._kept[key] = self._encode(prompt, negative, guided)
            if len(self._kept) > _CAPACITY:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _encode(self, prompt: str, negative: str | None, guided: bool) -> Embeddings:
        wanted = {
            "prompt": prompt,
            "prompt_2": None,
            "prompt_3": None,
            "negative_prompt": negative,
            "device": self._pipe._execution_device,
            "num_images_per_prompt": 1,
            "do_classifier_free_guidance": guided,
        }
        with torch.inference_mode():
            encoded = self._pipe.encode_prompt(**accepted(self._pipe.encode_prompt, wanted))
        pairs = zip(self._returns or (), encoded, strict=True)
        return {name: value for name, value in pairs if name and value is not None}


def accepted(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments that the function names."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in names}


def _returns(pipe: Any) -> tuple[str | None, ...] | None:
    if not hasattr(pipe, "encode_prompt"):
        return None
    takes, encodes = inspect.signature(pipe.__call__).parameters, inspect.signature(pipe.encode_prompt).parameters
    if any("mask" in name for name in takes if name.startswith(("prompt", "negative"))) or "prompt_embeds" not in takes:
        return None
    pooled = "pooled_prompt_embeds" in takes
    if "negative_prompt" in encodes:
        layout: tuple[str | None, ...] = _POOLED if pooled else _PAIR
        return layout if all(name in takes and name in encodes for name in layout) else None
    return _UNGUIDED if pooled and "prompt_2" in encodes else None


class TokenCounter:
    """Counts the tokens of prompts with the pipeline's own tokenizers."""

    def __init__(self, pipe: Any) -> None:
        self._readers = []
        longest = inspect.signature(pipe.__call__).parameters.get("max_sequence_length")
        for name, part in pipe.components.items():
            if name.startswith("tokenizer") and part is not None:
                is_clip = "CLIP" in type(part).__name__
                limit = part.model_max_length if is_clip or longest is None else longest.default
                self._readers.append((limit, part))

    def count(self, prompt: str) -> tuple[int | None, bool | None]:
        """Tokens of the prompt, special ones included, for the tokenizer that reads furthest, and whether even that one cuts it."""
        if not self._readers:
            return None, None
        limit, tokenizer = max(self._readers, key=lambda reader: reader[0])
        tokens = len(tokenizer(prompt, truncation=False, verbose=False).input_ids)
        return tokens, tokens > limit
