"""VQAScore: the probability that a model that answers questions about images says yes when it is asked whether this one shows the prompt
(Lin et al. 2024, arXiv 2404.01291, equation 1).

The next token's probability over the whole vocabulary. The question is the paper's; a chat model is asked by its own template.

https://github.com/linzhiqiu/t2v_metrics is the authors' code. It takes the same probability from the model of the paper, CLIP-FlanT5
(``clip_t5_model.py``), a network of its own that is no transformers model and is not read here, and from Qwen's
(``qwen2vl_model.py``), which it asks ``Does this image show "..."?``, in logits after the repetition penalty of their generation
settings. Here logits are taken before it, and every model is asked the paper's question: compare scores of one model only.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from pipeline.scorers.resolve import ScorerCard
from pipeline.scorers.transformer import load_transformer
from schemas.errors import ModelError

QUESTION = 'Does this figure show "{}"? Please answer yes or no.'
ANSWER = "Yes"


class VqaScorer:
    """One image-text-to-text model of transformers, in the number format of its weights. Each image is asked about by itself."""

    def __init__(self, card: ScorerCard) -> None:
        """Raises ModelError if the folder's parts do not fit together, the answer is no single token, or a question cannot be asked."""
        self.name, self.version = card.name, card.version
        self._model, self._processor = load_transformer(card, AutoModelForImageTextToText, dtype="auto")
        tokenizer = self._processor.tokenizer
        answer = tokenizer(ANSWER, add_special_tokens=False).input_ids
        if len(answer) != 1 or answer[0] == tokenizer.unk_token_id:
            raise ModelError(f"scorers.{card.name}: {card.model} has no single token for {ANSWER!r}; give another model")
        self._answer = answer[0]
        try:
            self.score(np.zeros((1, 64, 64, 3), dtype=np.uint8), ["a dog"])
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            how = "by its chat template" if self._processor.chat_template else "without a chat template, which it has not"
            raise ModelError(f"scorers.{card.name}: {card.model} cannot be asked {how} ({reason}); give another model") from error

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """uint8 (N, H, W, 3) and N prompts -> probabilities, float32 (N,)."""
        with torch.inference_mode():
            pairs = zip(images_NHWC, prompts, strict=True)
            return np.array([self._probability(Image.fromarray(image), prompt) for image, prompt in pairs], dtype=np.float32)

    def _probability(self, image: Image.Image, prompt: str) -> float:
        inputs = self._inputs(image, QUESTION.format(prompt)).to(self._model.device, dtype=self._model.dtype)
        made = self._model.generate(**inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True)
        return float(made.logits[0][0].float().softmax(dim=-1)[self._answer])

    def _inputs(self, image: Image.Image, question: str):
        if not self._processor.chat_template:
            return self._processor(images=image, text=question, return_tensors="pt")
        content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
        return self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
