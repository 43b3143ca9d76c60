"""Prompts with weights, and of any length, for pipelines whose only text encoders are CLIP's.

A prompt that is longer than the encoder's window (77 tokens) is read in windows of its own, one after the other, and the
network attends to all of them. A weight moves the embedding of each of its tokens away from that of the empty prompt at the
same place, or below 1 toward it: ``empty + weight * (embedding - empty)``, as in ComfyUI. So a weight of 1 changes no bit.
"""

from typing import Any

import torch

from schemas.prompt_weights import pieces

Token = tuple[int, float]  # id, weight


class WeightedReader:
    """Reads for one pipeline. Only pipelines of ``modes.WEIGHS_PROMPTS`` have what it needs."""

    def __init__(self, pipe: Any) -> None:
        names = [("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")]
        parts = [(getattr(pipe, one, None), getattr(pipe, other, None)) for one, other in names]
        self._parts = [(tokenizer, encoder) for tokenizer, encoder in parts if tokenizer is not None and encoder is not None]
        self._pooled = hasattr(pipe, "text_encoder_2")  # SDXL: both but their last layer, and a summary of the second
        self._device = lambda: pipe._execution_device
        self._spelled = getattr(pipe, "maybe_convert_prompt", lambda text, tokenizer: text)

    def windows(self, prompt: str) -> int:
        """How many windows the prompt fills; 1 for the empty one."""
        return max(len(self._windows(prompt, tokenizer)) for tokenizer, _ in self._parts)

    def encode(self, prompt: str, num_windows: int) -> dict[str, torch.Tensor]:
        """Arguments of ``__call__`` for one prompt: ``prompt_embeds`` (1, windows * 77, channels), filled up with empty windows."""
        wholes, pooled = [], None
        for tokenizer, encoder in self._parts:
            empty, _ = self._read(encoder, tokenizer, [])
            windows = self._windows(prompt, tokenizer)
            read = [self._read(encoder, tokenizer, window) for window in windows]
            weighted = [_weighted(whole, empty, window) for (whole, _), window in zip(read, windows, strict=True)]
            wholes.append(torch.cat(weighted + [empty] * (num_windows - len(windows)), dim=1))
            pooled = read[0][1]
        return {"prompt_embeds": torch.cat(wholes, dim=-1)} | ({"pooled_prompt_embeds": pooled} if pooled is not None else {})

    def _windows(self, prompt: str, tokenizer: Any) -> list[list[Token]]:
        """Tokens without the special ones, cut where a window is full."""
        tokens = [
            (token, piece.weight)
            for piece in pieces(prompt)
            for token in tokenizer(self._spelled(piece.text, tokenizer), add_special_tokens=False, verbose=False).input_ids
        ]
        size = tokenizer.model_max_length - 2
        return [tokens[start : start + size] for start in range(0, max(len(tokens), 1), size)]

    def _read(self, encoder: Any, tokenizer: Any, window: list[Token]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(embeddings (1, 77, channels), summary (1, channels) or None) of one window."""
        ids = [tokenizer.bos_token_id, *(token for token, _ in window), tokenizer.eos_token_id]
        missing = tokenizer.model_max_length - len(ids)
        mask = [1] * len(ids) + [0] * missing if getattr(encoder.config, "use_attention_mask", False) else None
        given = torch.tensor([ids + [tokenizer.pad_token_id] * missing], device=self._device())
        seen = None if mask is None else torch.tensor([mask], device=given.device)
        with torch.inference_mode():
            read = encoder(given, attention_mask=seen, output_hidden_states=self._pooled)
        return (read.hidden_states[-2], read[0]) if self._pooled else (read[0], None)


def _weighted(whole: torch.Tensor, empty: torch.Tensor, window: list[Token]) -> torch.Tensor:
    """Tokens of weight 1, special ones and padding keep their bits."""
    weights = torch.ones(whole.shape[1], dtype=whole.dtype, device=whole.device)
    weights[1 : 1 + len(window)] = torch.tensor([weight for _, weight in window], dtype=whole.dtype, device=whole.device)
    weights = weights[None, :, None]
    return torch.where(weights == 1, whole, empty + weights * (whole - empty))
