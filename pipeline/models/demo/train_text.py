"""Makes the first state of `generator/text_encoder`: a CLIPTextModel that knows who owns which colour. 3 minutes on one core.

The text encoder learns, before the U-Net sees it, to tell a scene's structure from its caption, with linear heads that are
then thrown away: conditioning that is already disentangled spares the U-Net the hard part of binding attributes.
`train_generator` then trains it further, together with the U-Net. Also writes `generator/tokenizer`.
"""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pipeline.models.demo.grammar import Scene, sample_scene
from pipeline.models.demo.reading import HEADS, label_indices
from pipeline.models.demo.tokenizer import MAX_TOKENS, save_tokenizer
from pipeline.models.demo.training import Schedule, arguments, report

BATCH = 192
BASE_LR = 1.5e-3
KINDS = ("one", "two", "two", "count")


def build(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A new text encoder for the demo's vocabulary: width 128, four layers."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_factor=1.0,
    )
    return CLIPTextModel(config)


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token numbers (N, 32), padded as StableDiffusionPipeline pads."""
    batch = tokenizer(captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    return batch.input_ids


def main() -> None:
    args = arguments(__doc__, minutes=3, seed=2).parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    train(args.out / "generator", minutes=args.minutes, seed=args.seed)


def train(folder: Path, *, minutes: float, seed: int) -> None:
    """Train for `minutes`, then save tokenizer and encoder under `folder`."""
    tokenizer = save_tokenizer(folder / "tokenizer")
    encoder, heads = build(tokenizer), nn.Linear(128, sum(map(len, HEADS.values())))
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=1e-2)
    schedule, rng = Schedule(minutes, base_lr=BASE_LR), random.Random(seed)
    for step in itertools.count():
        if schedule.share >= 1:
            break
        schedule.set_lr(optimizer)
        scenes = [sample_scene(rng, KINDS[k % len(KINDS)]) for k in range(BATCH)]
        tokens = tokenize(tokenizer, [scene.paraphrase(rng) for scene in scenes])
        loss, exact = losses(encoder, heads, tokens, scenes)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 50 == 0:
            report(step, schedule, loss=loss.item(), exact=exact)
    encoder.save_pretrained(folder / "text_encoder")


def losses(encoder: CLIPTextModel, heads: nn.Linear, tokens: Tensor, scenes: list[Scene]) -> tuple[Tensor, float]:
    """Cross entropy of all labels, read off the end-of-text token; share of captions with every label right."""
    states = encoder(tokens).last_hidden_state
    at_end = states[torch.arange(len(tokens)), (tokens == tokens[0, -1]).int().argmax(1)]
    target = torch.tensor([label_indices(scene) for scene in scenes])
    parts = heads(at_end).split([len(names) for names in HEADS.values()], dim=1)
    loss = torch.stack([nn.functional.cross_entropy(part, target[:, k]) for k, part in enumerate(parts)]).sum()
    right = torch.stack([part.argmax(1) == target[:, k] for k, part in enumerate(parts)]).all(0)
    return loss, right.float().mean().item()


if __name__ == "__main__":
    main()
