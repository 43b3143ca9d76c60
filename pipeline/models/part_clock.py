"""How long the parts of a pipeline take beside its network: reading texts, and decoding latents to pixels."""

import time
from collections.abc import Mapping
from typing import Any

import torch

_AUTOENCODERS = ("vae", "vqvae", "movq")


class PartClock:
    """Watches the parts of one pipeline. On a GPU each is waited for, else only the asking for it would be timed."""

    def __init__(self, pipe: Any) -> None:
        self._seconds: dict[str, float] = {}
        self._began = 0.0
        for name, part in pipe.components.items():
            if name.startswith("text_encoder") and isinstance(part, torch.nn.Module):
                self._watch("text", part)
            if name in _AUTOENCODERS and isinstance(decoder := getattr(part, "decoder", None), torch.nn.Module):
                self._watch("decode", decoder)

    def take(self) -> Mapping[str, float]:
        """Seconds by part, ``text`` and ``decode``, since the last call."""
        taken, self._seconds = self._seconds, {}
        return taken

    def _watch(self, name: str, part: torch.nn.Module) -> None:
        def begin(*_: object) -> None:
            self._began = _now()

        def end(*_: object) -> None:
            self._seconds[name] = self._seconds.get(name, 0.0) + _now() - self._began

        part.register_forward_pre_hook(begin)
        part.register_forward_hook(end)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
