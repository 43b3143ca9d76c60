"""Text embeddings, each made once and alone, and the tokens that a prompt takes.

Encoding one text at a time keeps the batch shape out of its embedding, so the same prompt conditions the same
image whoever its neighbours are, and a prompt that returns costs nothing.
"""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch

from pipeline.models.weighted_prompts import WeightedReader

Embeddings = dict[str, torch.Tensor]

_CAPACITY_BYTES = 256 * 2**20  # SDXL's take 0.6 MB a text in float32, T5's 5 MB
# what encode_prompt returns for one text, in order, as the arguments of __call__ that take it; None is not passed on
_PLAIN = ("prompt_embeds", None)  # Stable Diffusion 1 and 2
_POOLED = ("prompt_embeds", None, "pooled_prompt_embeds", None)  # SDXL, SD3
_FLUX = ("prompt_embeds", "pooled_prompt_embeds", None)


class PromptEncoder:
    """Encodes texts for one pipeline. ``supported`` is False where its encode_prompt is of another kind."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._returns = _returns(pipe)
        self._reader = WeightedReader(pipe)
        self._kept: OrderedDict[tuple[str, int], Embeddings] = OrderedDict()
        self._kept_bytes = 0

    @property
    def supported(self) -> bool:
        """Whether embeddings can be handed to the pipeline; else it takes the texts themselves."""
        return self._returns is not None

    def batch(self, prompts: Sequence[str], negatives: Sequence[str | None] | None, *, num_windows: int = 0) -> Embeddings:
        """Arguments of ``__call__``: embeddings of the texts, stacked along the batch. No negatives without guidance.

        With ``num_windows`` weights are read, and so many windows filled: at least as many as each text has.
        """
        stacked = _stacked([self._one(prompt, num_windows) for prompt in prompts])
        if negatives is not None:
            each = [self._negative(text, num_windows) for text in negatives]
            stacked |= {f"negative_{name}": value for name, value in _stacked(each).items()}
        return stacked

    def windows(self, texts: Sequence[str]) -> int:
        """How many windows of the text encoder the longest of them fills."""
        return max(self._reader.windows(text) for text in texts)

    def _negative(self, text: str | None, num_windows: int) -> Embeddings:
        one = self._one(text or "", num_windows)
        if text is None and getattr(self._pipe.config, "force_zeros_for_empty_prompt", False):  # as SDXL was trained
            return {name: torch.zeros_like(value) for name, value in one.items()}
        return one

    def _one(self, text: str, num_windows: int) -> Embeddings:
        key = (text, num_windows)
        if key not in self._kept:
            self._kept[key] = self._reader.encode(text, num_windows) if num_windows else self._encode(text)
            self._kept_bytes += _num_bytes(self._kept[key])
            while self._kept_bytes > _CAPACITY_BYTES and len(self._kept) > 1:
                self._kept_bytes -= _num_bytes(self._kept.popitem(last=False)[1])
        self._kept.move_to_end(key)
        return self._kept[key]

    def _encode(self, text: str) -> Embeddings:
        wanted = {
            "prompt": text,
            "prompt_2": None,
            "prompt_3": None,
            "device": self._pipe._execution_device,
            "num_images_per_prompt": 1,
            "do_classifier_free_guidance": False,
        }
        with torch.inference_mode():
            encoded = self._pipe.encode_prompt(**accepted(self._pipe.encode_prompt, wanted))
        return {name: value for name, value in zip(self._returns or (), encoded, strict=True) if name}


class TokenCounter:
    """Counts the tokens of prompts with the pipeline's own tokenizers."""

    def __init__(self, pipe: Any) -> None:
        self._readers: list[tuple[int, Any]] = []
        self._spelled = getattr(pipe, "maybe_convert_prompt", None)  # an embedding of several vectors takes a token for each
        longest = inspect.signature(pipe.__call__).parameters.get("max_sequence_length")
        for tokenizer in tokenizers(pipe):
            is_clip = "CLIP" in type(tokenizer).__name__
            self._readers.append((tokenizer.model_max_length if is_clip or longest is None else longest.default, tokenizer))

    def count(self, prompt: str) -> tuple[int | None, bool | None]:
        """Tokens of the prompt, special ones included, for the encoder that reads furthest, and whether even that one cuts it."""
        if not self._readers:
            return None, None
        limit, tokenizer = max(self._readers, key=lambda reader: reader[0])
        text = self._spelled(prompt, tokenizer) if self._spelled else prompt
        tokens = len(tokenizer(text, truncation=False, verbose=False).input_ids)
        return tokens, tokens > limit


def tokenizers(pipe: Any) -> list[Any]:
    """The pipeline's tokenizers, in the order of its components."""
    found = [part for name, part in pipe.components.items() if name.startswith("tokenizer") and part is not None]
    return [getattr(part, "tokenizer", part) for part in found]  # FLUX.2 [dev] has a processor there, which reads images too


def accepted(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments that the function names."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in names}


def _returns(pipe: Any) -> tuple[str | None, ...] | None:
    """Which kind of encode_prompt it is. Kinds with attention masks or texts of changing length are left to the pipeline."""
    takes = inspect.signature(pipe.__call__).parameters
    encodes = inspect.signature(pipe.encode_prompt).parameters if hasattr(pipe, "encode_prompt") else {}
    if "prompt_embeds" not in takes or "negative_prompt_embeds" not in takes or any("attention_mask" in name for name in takes):
        return None
    if not any("CLIP" in type(tokenizer).__name__ for tokenizer in tokenizers(pipe)):
        return None
    if "pooled_prompt_embeds" not in takes:
        return _PLAIN if "negative_prompt" in encodes else None
    if "negative_prompt" in encodes:
        return _POOLED
    return _FLUX if "prompt_2" in encodes else None


def _stacked(each: Sequence[Embeddings]) -> Embeddings:
    return {name: torch.cat([one[name] for one in each]) for name in each[0]}


def _num_bytes(embeddings: Embeddings) -> int:
    return sum(value.nbytes for value in embeddings.values())
