"""CLIP score: the cosine between an image and its prompt (Radford et al. 2021, arXiv 2103.00020). The only importer of open_clip.

The plain cosine, in float32, in [-1, 1]: not times 100 (torchmetrics), not 2.5 * max(cos, 0) (Hessel et al. 2021).
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image

from pipeline.scorers.resolve import ScorerCard
from schemas.errors import ModelError

_CAPACITY = 4096  # text features kept, a few kB each


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipParts:
    """What a CLIP score takes: a model of open_clip, its tokenizer, and how images are made to fit it."""

    model: Any
    tokenizer: Any
    settings: open_clip.transform.PreprocessCfg


def from_folder(card: ScorerCard, device: str) -> ClipParts:
    """The parts in a folder of open_clip's own format. Raises ModelError if they do not fit together."""
    source = f"local-dir:{card.folder}"
    try:
        model: Any = open_clip.create_model(source, precision="fp32", device=device, require_pretrained=True)
        tokenizer: Any = open_clip.get_tokenizer(source)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"scorers.{card.name}: {card.model} cannot be loaded ({reason}); copy or download it again") from error
    return ClipParts(model=model, tokenizer=tokenizer, settings=open_clip.transform.PreprocessCfg(**model.visual.preprocess_cfg))


class ClipScorer:
    """One open_clip model. Each prompt is encoded once and alone, each image by itself."""

    def __init__(self, card: ScorerCard, *, load: Callable[[ScorerCard, str], ClipParts] = from_folder) -> None:
        """Load onto the GPU if there is one. Raises ModelError as ``load`` does."""
        self.name, self.version = card.name, card.version
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        parts = load(card, self._device)
        self._model, self._tokenizer = parts.model.eval(), parts.tokenizer
        self._preprocess: Any = open_clip.transform.image_transform_v2(parts.settings, is_train=False)
        self._texts: OrderedDict[str, torch.Tensor] = OrderedDict()

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """uint8 (N, H, W, 3) and N prompts -> cosines, float32 (N,)."""
        with torch.inference_mode():
            cosines = (self.images(images_NHWC) * self.texts(prompts)).sum(dim=-1)
            return cosines.cpu().numpy().astype(np.float32)

    def images(self, images_NHWC: np.ndarray) -> torch.Tensor:
        """Image features of length 1, float32 (N, D)."""
        pixels_NCHW = torch.stack([self._preprocess(Image.fromarray(image)) for image in images_NHWC])
        with torch.inference_mode():
            return F.normalize(self._model.encode_image(pixels_NCHW.to(self._device)).float(), dim=-1)

    def texts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Text features of length 1, float32 (N, D)."""
        with torch.inference_mode():
            return torch.stack([self._text(prompt) for prompt in prompts])

    @property
    def logit_scale(self) -> float:
        """Inverse temperature of the model's softmax over texts."""
        return float(self._model.logit_scale.detach().exp())

    def truncates(self, prompts: Sequence[str]) -> list[bool]:
        """For each prompt, whether its end lies beyond the model's context."""
        return [self._num_tokens(prompt) > self._tokenizer.context_length for prompt in prompts]

    def _text(self, prompt: str) -> torch.Tensor:
        if prompt not in self._texts:
            tokens = self._tokenizer([prompt]).to(self._device)
            self._texts[prompt] = F.normalize(self._model.encode_text(tokens).float(), dim=-1)[0]
            if len(self._texts) > _CAPACITY:
                self._texts.popitem(last=False)
        self._texts.move_to_end(prompt)
        return self._texts[prompt]

    def _num_tokens(self, prompt: str) -> int:
        """Tokens before truncation, with the two that mark start and end."""
        if isinstance(self._tokenizer, open_clip.SimpleTokenizer):
            return len(self._tokenizer.encode(prompt)) + 2
        text = self._tokenizer.clean_fn(prompt)
        return len(self._tokenizer.tokenizer(text, truncation=False, verbose=False).input_ids)
