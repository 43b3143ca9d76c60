"""Makes `upscaler/`: 16 x 16 pixels and a caption to 64 x 64. 45 minutes on one core; needs the generator's text encoder.

Latent diffusion with the small picture beside the latents, as Stable Diffusion's x4 upscaler has it (Rombach et al. 2022,
arXiv 2112.10752, section 4.5), in diffusers' own format. The small picture bears noise, and the U-Net is told how much (Ho
et al. 2022, "Cascaded Diffusion Models", arXiv 2106.15282). The first third of the time goes to an autoencoder of its own,
which halves twice only: a pixel of the small picture lies on each of its 16 x 16 latents.
"""

from __future__ import annotations

import argparse
import itertools
import random
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionUpscalePipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from pipeline.models.demo import train_vae
from pipeline.models.demo.muon import Muon, groups
from pipeline.models.demo.train_generator import build_scheduler, load_text_encoder, velocity_loss
from pipeline.models.demo.train_text import tokenize
from pipeline.models.demo.training import Average, Schedule, arguments, batches, report, to_tensor

SCALE = 4
SCALING_FACTOR = 0.08333  # diffusers takes no other for this pipeline
LATENT_CHANNELS = 4
BATCH = 32
BASE_LR = 8e-4
MUON_SCALE = 15.0
DROPPED_CAPTIONS = 0.1
MAX_NOISE_LEVEL = 100
VAE_SHARE = 1 / 3
KINDS = ("one", "two", "count")


def build_unet() -> UNet2DConditionModel:
    """16 x 16 latents beside three channels of the small picture; cross-attention on the 8 x 8 level."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS + 3,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=128,
        norm_num_groups=16,
        num_class_embeds=1000,
    )


def small(pixels: Tensor) -> Tensor:
    """The picture at a quarter of its width and height, each pixel the mean of those that it stands for."""
    return nn.functional.avg_pool2d(pixels, SCALE)


class Upscaler(nn.Module):
    """U-Net and the frozen text encoder."""

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet, self.text_encoder = build_unet(), text_encoder.requires_grad_(False)
        self.unet.set_attn_processor(AttnProcessor())

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor, *, pixels: Tensor, noise_level: Tensor) -> Tensor:
        """Predicted velocity (N, 4, 16, 16)."""
        states = self.text_encoder(tokens).last_hidden_state
        return self.unet(torch.cat((noisy, pixels), 1), timesteps, states, class_labels=noise_level).sample


def main() -> None:
    parser = arguments(__doc__, minutes=45, seed=8)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    train(args)


def train(args: argparse.Namespace) -> None:
    """Train the autoencoder, then the U-Net, and save the pipeline as fp16."""
    folder, generator = args.out / "upscaler", args.out / "generator"
    vae = train_autoencoder(args.minutes * VAE_SHARE)
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(generator / "tokenizer")
    model = Upscaler(load_text_encoder(generator)).train()
    optimizer = Muon(groups(model.unet.named_parameters(), weight_decay=1e-2, muon_scale=MUON_SCALE), lr=BASE_LR, betas=(0.9, 0.99))
    average, schedule = Average(model.unet, 0.995), Schedule(args.minutes * (1 - VAE_SHARE), base_lr=BASE_LR)
    rng, alphas, spoiler = random.Random(args.seed), build_scheduler().alphas_cumprod, low_res_scheduler()
    losses: list[float] = []
    for step, (scenes, images) in enumerate(batches("generator", size=BATCH, kinds=KINDS)):
        if schedule.share >= 1:
            break
        lr = schedule.set_lr(optimizer)
        pixels = to_tensor(images)
        with torch.no_grad():
            latents = vae.encode(pixels).latent_dist.mean * SCALING_FACTOR
        noise_level = torch.randint(MAX_NOISE_LEVEL, (BATCH,))
        spoilt = spoiler.add_noise(small(pixels), torch.randn(BATCH, 3, 16, 16), noise_level)  # pyright: ignore[reportArgumentType]
        captions = [scene.paraphrase(rng) if rng.random() >= DROPPED_CAPTIONS else "" for scene in scenes]
        loss = velocity_loss(partial(model, pixels=spoilt, noise_level=noise_level), latents, tokenize(tokenizer, captions), alphas)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.unet.parameters(), 1.0)
        optimizer.step()
        average.update(model.unet)
        losses.append(loss.item())
        if step % 50 == 0:
            report(step, schedule, loss=sum(losses) / len(losses), lr=lr)
            losses.clear()
    model.unet.load_state_dict(average.values)
    save(folder, vae, model, tokenizer)


def train_autoencoder(minutes: float) -> AutoencoderKL:
    """An autoencoder of 16 x 16 x 4 latents, each channel with mean 0 and standard deviation 1 / SCALING_FACTOR."""
    vae = train_vae.build(widths=(32, 48, 64), latent_channels=LATENT_CHANNELS).train()
    schedule = Schedule(minutes, base_lr=train_vae.BASE_LR)
    optimizer = Muon(
        groups(vae.named_parameters(), weight_decay=1e-3, muon_scale=train_vae.MUON_SCALE), lr=train_vae.BASE_LR, betas=(0.9, 0.98)
    )
    average, scale = Average(vae, 0.995), torch.ones(1, LATENT_CHANNELS, 1, 1)
    for step, (_, images) in zip(itertools.count(), batches("generator", size=train_vae.BATCH, kinds=KINDS, start=3_000_000), strict=False):
        if schedule.share >= 1:
            break
        schedule.set_lr(optimizer)
        figures, loss, scale = train_vae.losses(vae, to_tensor(images), scale)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        average.update(vae)
        if step % 50 == 0:
            report(step, schedule, **figures)
    vae.load_state_dict(average.values)
    train_vae.standardise(vae.eval(), spread=1 / SCALING_FACTOR)
    vae.register_to_config(scaling_factor=SCALING_FACTOR)
    print("mean absolute error in grey levels:", train_vae.error(vae, 0.0), flush=True)
    return vae.requires_grad_(False)


def low_res_scheduler() -> DDPMScheduler:
    """How the small picture is given noise."""
    return DDPMScheduler(beta_schedule="squaredcos_cap_v2")


def save(folder: Path, vae: AutoencoderKL, model: Upscaler, tokenizer: CLIPTokenizer) -> None:
    """The whole pipeline in diffusers' own format."""
    StableDiffusionUpscalePipeline(
        vae=vae.half(),
        text_encoder=model.text_encoder.half(),
        tokenizer=tokenizer,
        unet=model.unet.half(),
        low_res_scheduler=low_res_scheduler(),
        scheduler=build_scheduler(),
        watermarker=None,
        max_noise_level=MAX_NOISE_LEVEL,
    ).save_pretrained(folder, safe_serialization=True)


if __name__ == "__main__":
    main()
