"""Makes `generator/unet`, `generator/text_encoder` and the pipeline's other files: latent diffusion on drawings.

Needs `train_vae` and `train_text` first. Takes as long as it gets: about 60 minutes on two cores for the bundled weights.
Several processes (`--ranks 2`, one thread each) average their gradients; two of one thread are faster than one of two.

- Latent diffusion with cross-attention on the caption's tokens (Rombach et al. 2022, arXiv 2112.10752), 10 % of the
  captions empty for classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598).
- v-prediction (Salimans & Ho 2022, arXiv 2202.00512) on a cosine schedule (Nichol & Dhariwal 2021, arXiv 2102.09672)
  rescaled to zero terminal SNR (Lin et al. 2024, arXiv 2305.08891): else plain backgrounds come out in the wrong shade.
- Most of the timesteps from a logit-normal density (Esser et al. 2024, arXiv 2403.03206) that favours the noise levels at
  which layout and shapes are decided: what is left of the noise below them, the decoder was trained to ignore.
- Muon for the matrices (`muon.py`), moving average of the weights, learning rate to zero at the end.
- Attention as two plain matrix products: over 64 tokens torch's fused kernel is slower on a CPU, backwards above all.
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from pipeline.models.demo.muon import Muon, groups
from pipeline.models.demo.train_text import tokenize
from pipeline.models.demo.train_vae import LATENT_CHANNELS
from pipeline.models.demo.training import (
    Average,
    Schedule,
    agreed,
    arguments,
    average_gradients,
    drawings,
    report,
    run_ranks,
    to_tensor,
)

BATCH = 48
BASE_LR = 8e-4
MUON_SCALE = 15.0
TEXT_SCALE = 0.4
DROPPED_CAPTIONS = 0.1
POOL = 40_000
KINDS = ("one", "two", "one", "two", "count")


def build_unet() -> UNet2DConditionModel:
    """A new U-Net on 8 x 8 x 16 latents with a 4 x 4 level, cross-attention on both."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(128, 192),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=128,
        norm_num_groups=16,
    )


def build_scheduler() -> DPMSolverMultistepScheduler:
    """DPM-Solver++ 2M (Lu et al. 2022, arXiv 2211.01095) on the schedule that the U-Net is trained with."""
    return DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


class Denoiser(nn.Module):
    """U-Net and text encoder as one module: what the optimizer and the moving average see."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """Predicted velocity (N, 16, 8, 8)."""
        states = self.text_encoder(tokens).last_hidden_state
        return self.unet(noisy, timesteps, states).sample


class Pool:
    """Latents and scenes of the training drawings: made batch by batch until the pool is full, then drawn from it."""

    def __init__(self, vae: AutoencoderKL, *, rank: int, rng: random.Random) -> None:
        self.vae, self.next, self.rng = vae.to(torch.bfloat16).eval(), rank * POOL, rng
        self.latents, self.scenes = torch.empty(0), []

    @torch.no_grad()
    def batch(self, size: int) -> tuple[Tensor, list[str]]:
        """Latents (N, 16, 8, 8) and a wording of each caption."""
        if len(self.scenes) < POOL:
            scenes, images = drawings("generator", start=self.next, count=size, kinds=KINDS)
            pixels = to_tensor(images).bfloat16().contiguous(memory_format=torch.channels_last)
            latents = self.vae.encode(pixels).latent_dist.mean.float()
            if not self.scenes:
                self.latents = torch.empty(POOL + size, *latents.shape[1:])
            self.latents[len(self.scenes) : len(self.scenes) + size] = latents
            self.scenes += scenes
            self.next += size
        else:
            chosen = [self.rng.randrange(len(self.scenes)) for _ in range(size)]
            latents, scenes = self.latents[chosen], [self.scenes[k] for k in chosen]
        empty = [self.rng.random() < DROPPED_CAPTIONS for _ in scenes]
        return latents, ["" if drop else scene.paraphrase(self.rng) for drop, scene in zip(empty, scenes, strict=True)]


def main() -> None:
    parser = arguments(__doc__, minutes=60, seed=3)
    parser.add_argument("--warm-start", type=Path, help="generator folder to take the first weights of U-Net and text encoder from")
    parser.add_argument("--state", type=Path, default=Path(".train/generator.pt"), help="checkpoint to write and resume")
    run_ranks(train, parser.parse_args())


def train(rank: int, args: argparse.Namespace) -> None:
    """One rank of the training; rank 0 reports and saves."""
    torch.manual_seed(args.seed)
    folder = args.out / "generator"
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    unet = load_unet(args.warm_start) if args.warm_start else build_unet()
    model = Denoiser(unet, load_text_encoder(args.warm_start or folder)).train()
    unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    unet.set_attn_processor(AttnProcessor())
    model.text_encoder.set_attn_implementation("eager")
    parts = groups(unet.named_parameters(), weight_decay=1e-2, muon_scale=MUON_SCALE)
    for group in groups(model.text_encoder.named_parameters(), weight_decay=1e-2, muon_scale=MUON_SCALE):
        parts.append({**group, "lr_scale": TEXT_SCALE * group.get("lr_scale", 1.0)})
    optimizer = Muon(parts, lr=BASE_LR, betas=(0.9, 0.99))
    average, first_step, spent = Average(model, 0.995), 0, 0.0
    if args.state.exists():
        first_step, spent = load_state(args.state, model, optimizer, average)
    torch.manual_seed(args.seed + 1000 * rank + first_step)
    pool = Pool(load_vae(folder), rank=rank, rng=random.Random(args.seed + 1000 * rank + first_step))
    alphas = build_scheduler().alphas_cumprod
    schedule = Schedule(args.minutes, base_lr=BASE_LR, spent_seconds=spent)
    saved = schedule.spent_seconds
    losses: list[float] = []
    step = first_step
    for step in itertools.count(first_step):
        if agreed(2.0 if args.state.with_suffix(".stop").exists() else schedule.share) >= 1:
            break
        lr = schedule.set_lr(optimizer)
        latents, captions = pool.batch(BATCH)
        loss = velocity_loss(model, latents, tokenize(tokenizer, captions), alphas)
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        average_gradients(model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update(model)
        losses.append(loss.item())
        if rank == 0 and step % 50 == 0:
            report(step, schedule, loss=sum(losses) / len(losses), lr=lr)
            losses.clear()
        if rank == 0 and schedule.spent_seconds - saved > 240:
            saved = schedule.spent_seconds
            save_state(args.state, model, optimizer, average, step + 1, saved)
    if rank == 0:
        save_state(args.state, model, optimizer, average, step, schedule.spent_seconds)
        if schedule.share >= 1:
            export(folder, average)


def velocity_loss(model: Callable[[Tensor, Tensor, Tensor], Tensor], latents: Tensor, tokens: Tensor, alphas: Tensor) -> Tensor:
    """Mean squared error of the velocity alpha * noise - sigma * latents at random timesteps."""
    uniform = torch.rand(len(latents))
    centred = torch.sigmoid(0.4 + torch.randn(len(latents)))
    share = torch.where(torch.rand(len(latents)) < 0.3, uniform, centred)
    timesteps = (share * 1000).long().clamp(0, 999)
    alpha, sigma = (part.view(-1, 1, 1, 1) for part in (alphas[timesteps].sqrt(), (1 - alphas[timesteps]).sqrt()))
    noise = torch.randn_like(latents)
    with torch.autocast("cpu", torch.bfloat16):
        predicted = model(alpha * latents + sigma * noise, timesteps, tokens)
    return (predicted.float() - (alpha * noise - sigma * latents)).square().mean()


def load_vae(folder: Path) -> AutoencoderKL:
    """The finished autoencoder."""
    return AutoencoderKL.from_pretrained(folder / "vae", use_safetensors=True, local_files_only=True)


def load_unet(folder: Path) -> UNet2DConditionModel:
    """A trained U-Net, float32."""
    return UNet2DConditionModel.from_pretrained(folder / "unet", use_safetensors=True, local_files_only=True).float()


def load_text_encoder(folder: Path) -> CLIPTextModel:
    """The text encoder of a generator's folder, float32."""
    return CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)


def save_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: Average, step: int, seconds: float) -> None:
    """Write a checkpoint, whole or not at all."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average.values}
    torch.save({**state, "average_steps": average.steps, "step": step, "spent_seconds": seconds}, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def load_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: Average) -> tuple[int, float]:
    """Load a checkpoint; steps and seconds spent so far."""
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    average.values, average.steps = state["average"], state["average_steps"]
    return state["step"], state["spent_seconds"]


def export(folder: Path, average: Average, to: Path | None = None) -> None:
    """Write the whole pipeline in diffusers' own format, fp16 safetensors, from averaged weights."""
    model = Denoiser(build_unet(), load_text_encoder(folder))
    model.load_state_dict(average.values)
    model.half()
    pipeline = StableDiffusionPipeline(
        vae=load_vae(folder).half(),
        text_encoder=model.text_encoder,
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=model.unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(to or folder, safe_serialization=True)


if __name__ == "__main__":
    main()
