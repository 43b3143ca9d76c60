"""Tiny transformers models with random weights, as scorers load them, in the folder format of `save_pretrained`."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from pipeline.models.demo.tokenizer import save_tokenizer

VISION = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
TEXT = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 2}
WORDS = [*'Does this figure show " ? Please answer yes or no .'.split(), *"Yes No a red blue circle USER ASSISTANT :".split()]  # noqa: SIM905
SPECIAL = ["<pad>", "</s>", "<unk>", "<image>"]
PART = "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }}{% endif %}"
CHAT = "{% for m in messages %}USER : {% for c in m['content'] %}" + PART + "{% endfor %}{% endfor %} ASSISTANT :"


def make_clip(folder: Path) -> Path:
    """A CLIPModel of 16 features with the bundled tokenizer, from a fixed seed: PickScore's architecture."""
    folder.mkdir(parents=True)
    tokenizer = save_tokenizer(folder)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text = TEXT | ends | {"vocab_size": len(tokenizer), "max_position_embeddings": 16}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16)).save_pretrained(folder)
    pixels = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=pixels, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def make_llava(folder: Path, *, words: list[str] = WORDS) -> Path:
    """A model that answers in a chat, by the next token of a decoder."""
    tokenizer = _tokenizer(words)
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=VISION | {"model_type": "clip_vision_model"},
        text_config=TEXT | {"model_type": "llama", "vocab_size": len(tokenizer), "max_position_embeddings": 64},
        image_token_index=SPECIAL.index("<image>"),
        vision_feature_layer=-1,
    )
    _sharpened(LlavaForConditionalGeneration(config)).save_pretrained(folder)
    pixels = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    LlavaProcessor(
        image_processor=pixels,
        tokenizer=tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    ).save_pretrained(folder)
    return folder


def make_blip2(folder: Path) -> Path:
    """A model with an encoder and a decoder, without a chat template."""
    tokenizer = _tokenizer(WORDS)
    torch.manual_seed(0)
    text = {"model_type": "t5", "vocab_size": len(tokenizer), "d_model": 32, "d_kv": 16, "d_ff": 37, "num_layers": 1, "num_heads": 2}
    ends = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
    qformer = TEXT | {"vocab_size": len(tokenizer), "encoder_hidden_size": 32}
    config = Blip2Config(
        vision_config=VISION,
        qformer_config=qformer,
        text_config=text | ends,
        num_query_tokens=2,
        image_token_index=SPECIAL.index("<image>"),
    )
    _sharpened(Blip2ForConditionalGeneration(config)).save_pretrained(folder)
    pixels = BlipImageProcessor(size={"height": 32, "width": 32})
    Blip2Processor(image_processor=pixels, tokenizer=tokenizer, num_query_tokens=2).save_pretrained(folder)
    return folder


def _tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys([*SPECIAL, *words]))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, additional_special_tokens=["<image>"], **special)


def _sharpened(model: Any) -> Any:
    """Random weights large enough that image and prompt change the answer."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" not in name.lower() and value.ndim > 1:
                value.normal_(std=0.5)
    return model
