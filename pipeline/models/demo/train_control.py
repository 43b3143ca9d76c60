"""Makes `controlnet/`: edges guide the bundled generator. 30 minutes on one core, with the generator frozen.

A ControlNet (Zhang et al. 2023, arXiv 2302.05543) in diffusers' own format. Of the U-Net's encoder it has the convolutions
only, copied at the start: edges say where, and the U-Net itself reads the caption. Edges come from the drawing by the same
Canny detector that runs use, at thresholds of every kind.
"""

from __future__ import annotations

import argparse
import itertools
import random
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPTokenizer

from pipeline.inputs import canny
from pipeline.models.demo.muon import Muon, groups
from pipeline.models.demo.train_generator import build_scheduler, load_text_encoder, load_unet, load_vae, velocity_loss
from pipeline.models.demo.train_text import tokenize
from pipeline.models.demo.train_vae import LATENT_CHANNELS
from pipeline.models.demo.training import Average, Schedule, arguments, drawings, report, to_tensor

BATCH = 48
BASE_LR = 6e-4
MUON_SCALE = 15.0
DROPPED_CAPTIONS = 0.2
POOL = 20_000
KINDS = ("one", "two", "count")


def build_controlnet() -> ControlNetModel:
    """The convolutions of the U-Net's encoder, on 8 x 8 latents."""
    return ControlNetModel(
        in_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D",) * 2,
        mid_block_type="UNetMidBlock2D",
        block_out_channels=(128, 192),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=128,
        norm_num_groups=16,
        conditioning_embedding_out_channels=(16, 32, 64, 96),
    )


def main() -> None:
    parser = arguments(__doc__, minutes=30, seed=7)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    train(args)


def train(args: argparse.Namespace) -> None:
    """Train for `args.minutes` and save the averaged weights as fp16."""
    folder = args.out / "generator"
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    controlnet = build_controlnet().train()
    model = Controlled(controlnet, folder)
    copied = {name: value for name, value in model.unet.state_dict().items() if name in controlnet.state_dict()}
    controlnet.load_state_dict(copied, strict=False)
    optimizer = Muon(groups(controlnet.named_parameters(), weight_decay=1e-2, muon_scale=MUON_SCALE), lr=BASE_LR, betas=(0.9, 0.99))
    average, schedule = Average(controlnet, 0.995), Schedule(args.minutes, base_lr=BASE_LR)
    examples = Examples(folder, random.Random(args.seed))
    alphas = build_scheduler().alphas_cumprod
    losses: list[float] = []
    for step in itertools.count():
        if schedule.share >= 1:
            break
        lr = schedule.set_lr(optimizer)
        latents, edges, captions = examples.batch(BATCH)
        loss = velocity_loss(partial(model, edges=edges), latents, tokenize(tokenizer, captions), alphas)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(controlnet.parameters(), 1.0)
        optimizer.step()
        average.update(controlnet)
        losses.append(loss.item())
        if step % 50 == 0:
            report(step, schedule, loss=sum(losses) / len(losses), lr=lr)
            losses.clear()
    controlnet.load_state_dict(average.values)
    controlnet.half().save_pretrained(args.out / "controlnet")


class Controlled(nn.Module):
    """The frozen generator, guided by a ControlNet."""

    def __init__(self, controlnet: ControlNetModel, folder: Path) -> None:
        super().__init__()
        self.controlnet = controlnet
        self.unet, self.text_encoder = load_unet(folder).requires_grad_(False), load_text_encoder(folder).requires_grad_(False)
        self.unet.set_attn_processor(AttnProcessor())

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor, *, edges: Tensor) -> Tensor:
        """Predicted velocity (N, 16, 8, 8)."""
        states = self.text_encoder(tokens).last_hidden_state
        down, mid = self.controlnet(noisy, timesteps, states, controlnet_cond=edges, return_dict=False)
        return self.unet(noisy, timesteps, states, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample


class Examples:
    """Latents, pictures and scenes of drawings: made batch by batch until the pool is full, then drawn from it."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.vae, self.rng = load_vae(folder).to(torch.bfloat16).eval(), rng
        self.latents, self.images, self.scenes = [], [], []

    @torch.no_grad()
    def batch(self, size: int) -> tuple[Tensor, Tensor, list[str]]:
        """Latents (N, 16, 8, 8), edges (N, 3, 64, 64) in 0..1, and a wording of each caption."""
        if len(self.scenes) < POOL:
            scenes, images = drawings("generator", start=len(self.scenes), count=size, kinds=KINDS)
            latents = self.vae.encode(to_tensor(images).bfloat16()).latent_dist.mean.float()
            self.scenes, self.images, self.latents = self.scenes + scenes, [*self.images, *images], [*self.latents, *latents]
        chosen = [len(self.scenes) - size + k if len(self.scenes) < POOL else self.rng.randrange(len(self.scenes)) for k in range(size)]
        captions = [self.scenes[k].paraphrase(self.rng) if self.rng.random() >= DROPPED_CAPTIONS else "" for k in chosen]
        return torch.stack([self.latents[k] for k in chosen]), self._edges([self.images[k] for k in chosen]), captions

    def _edges(self, images: list[NDArray[np.uint8]]) -> Tensor:
        high = [self.rng.randrange(40, 201) for _ in images]
        edges = [canny(image, upper // 2, upper) for image, upper in zip(images, high, strict=True)]
        return torch.from_numpy(np.stack(edges)).permute(0, 3, 1, 2).float() / 255


if __name__ == "__main__":
    main()
