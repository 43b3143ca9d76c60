"""PickScore: which image of a prompt people prefer, by a CLIP that was trained on their choices (Kirstain et al. 2023, arXiv 2305.01569).

The model's temperature times the cosine (equation 1 there): some 20 for good images. Meant to rank images of one prompt.

As in the example of https://github.com/yuvalkirstain/PickScore: a CLIPModel, texts cut at 77 tokens, features of length 1,
``logit_scale.exp()``. There the processor is that of laion/CLIP-ViT-H-14-laion2B-s32B-b79K, from which the model was trained; here it is
the one in the model's folder. A prompt is encoded alone, so it needs no padding.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPModel

from pipeline.scorers.resolve import ScorerCard
from pipeline.scorers.transformer import load_transformer


class PickScorer:
    """One CLIPModel of transformers. Each prompt is encoded alone, each image by itself."""

    def __init__(self, card: ScorerCard) -> None:
        """Raises ModelError if the folder's parts do not fit together."""
        self.name, self.version = card.name, card.version
        self._model, self._processor = load_transformer(card, CLIPModel, dtype=torch.float32)
        self._context = self._model.config.text_config.max_position_embeddings

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """uint8 (N, H, W, 3) and N prompts -> float32 (N,)."""
        with torch.inference_mode():
            texts = {prompt: self._text(prompt) for prompt in dict.fromkeys(prompts)}
            images_ND = torch.cat([self._image(image) for image in images_NHWC])
            cosines = (images_ND * torch.stack([texts[prompt] for prompt in prompts])).sum(dim=-1)
            return (self._model.logit_scale.exp() * cosines).cpu().numpy().astype(np.float32)

    def truncates(self, prompts: Sequence[str]) -> list[bool]:
        """For each prompt, whether its end lies beyond the model's context."""
        tokenizer = self._processor.tokenizer
        return [len(tokenizer(prompt, truncation=False, verbose=False).input_ids) > self._context for prompt in prompts]

    def _image(self, image_HWC: np.ndarray) -> torch.Tensor:
        inputs = self._processor(images=Image.fromarray(image_HWC), return_tensors="pt").to(self._model.device)
        return F.normalize(self._model.get_image_features(**inputs).pooler_output, dim=-1)

    def _text(self, prompt: str) -> torch.Tensor:
        inputs = self._processor(text=[prompt], truncation=True, max_length=self._context, return_tensors="pt").to(self._model.device)
        return F.normalize(self._model.get_text_features(**inputs).pooler_output, dim=-1)[0]
