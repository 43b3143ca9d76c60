"""Makes `generator/vae`: the AutoencoderKL between 64 x 64 pixels and 8 x 8 x 16 latents. About 45 minutes on one core.

A second run with `--decoder-only` goes on with the decoder alone (10 minutes), while the generator already trains on the
latents, which stay as they are.

- Loss: L1 + L2 + L1 of the finite differences (sharp edges) + a small KL term (Kingma & Welling 2014, arXiv 1312.6114;
  Rombach et al. 2022, arXiv 2112.10752).
- Most of the latents get noise before they are decoded, up to NOISE times their own standard deviation, and the target
  stays clean (Yang et al. 2025, "l-DeTok", arXiv 2507.15856). Encoder and decoder learn to spread what matters over many
  numbers: a generator's latents are never quite right, and this is what keeps the edges of its pictures clean.
- At the end every latent channel is given mean 0 and standard deviation 1 over the drawings by folding the affine map
  into the 1 x 1 convolutions around the latents, so `scaling_factor` is 1 and the noise schedule fits all channels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from pipeline.models.demo.muon import Muon, groups
from pipeline.models.demo.training import (
    Average,
    Schedule,
    agreed,
    arguments,
    average_gradients,
    batches,
    drawings,
    report,
    run_ranks,
    to_tensor,
)

BATCH = 16
BASE_LR = 1.5e-3
MUON_SCALE = 8.0
KL_WEIGHT = 1e-4
LATENT_CHANNELS = 16
NOISE = 0.8
KINDS = ("one", "two", "count", "one", "two", "count", "one")


def build(*, widths: tuple[int, ...] = (32, 32, 64, 96), latent_channels: int = LATENT_CHANNELS) -> AutoencoderKL:
    """A new autoencoder with random weights, which halves the sides once less than it has widths."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=1.0,
    )


def main() -> None:
    parser = arguments(__doc__, minutes=45, seed=1)
    parser.add_argument("--warm-start", type=Path, help="vae folder to take all tensors of fitting shape from")
    parser.add_argument("--decoder-only", action="store_true", help="continue with the decoder, latents unchanged")
    run_ranks(train, parser.parse_args())


def train(rank: int, args: argparse.Namespace) -> None:
    """One rank of the training; rank 0 reports, and saves the averaged weights as fp16."""
    torch.manual_seed(args.seed)
    folder = args.out / "generator" / "vae"
    vae = build()
    if args.warm_start or args.decoder_only:
        warm_start(vae, args.warm_start or folder)
    torch.manual_seed(args.seed + 1000 * rank)
    vae.train()
    vae.encoder.requires_grad_(not args.decoder_only)
    vae.quant_conv.requires_grad_(not args.decoder_only)
    schedule = Schedule(args.minutes, base_lr=BASE_LR * (0.5 if args.decoder_only else 1))
    trained = [(name, parameter) for name, parameter in vae.named_parameters() if parameter.requires_grad]
    optimizer = Muon(groups(trained, weight_decay=1e-3, muon_scale=MUON_SCALE), lr=BASE_LR, betas=(0.9, 0.98))
    average, scale = Average(vae, 0.995), torch.ones(1, LATENT_CHANNELS, 1, 1)
    start = (2_000_000 if args.decoder_only else 0) + 500_000 * rank
    for step, (_, images) in enumerate(batches("generator", size=BATCH, kinds=KINDS, start=start)):
        if agreed(schedule.share) >= 1:
            break
        schedule.set_lr(optimizer)
        figures, loss, scale = losses(vae, to_tensor(images), scale)
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        average_gradients(vae)
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        average.update(vae)
        if rank == 0 and step % 50 == 0:
            report(step, schedule, **figures)
    if rank == 0:
        vae.load_state_dict(average.values)
        vae.eval()
        if not args.decoder_only:
            standardise(vae)
        print("mean absolute error in grey levels, clean and noisy latents:", error(vae, 0.0), error(vae, 0.5))
        vae.half().save_pretrained(folder)


def warm_start(vae: AutoencoderKL, folder: Path) -> None:
    """Take over all tensors of fitting shape from another autoencoder."""
    wanted = vae.state_dict()
    found = AutoencoderKL.from_pretrained(folder, use_safetensors=True, local_files_only=True).float().state_dict()
    vae.load_state_dict({name: found[name] if found[name].shape == value.shape else value for name, value in wanted.items()})


def losses(vae: AutoencoderKL, pixels: Tensor, scale: Tensor) -> tuple[dict[str, float], Tensor, Tensor]:
    """Figures to report, the loss to minimise, and the running standard deviation of the latents (1, C, 1, 1)."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(pixels).latent_dist
        mean, std = posterior.mean.float(), posterior.std.float()
        scale = 0.98 * scale + 0.02 * mean.detach().std((0, 2, 3), keepdim=True)
        strength = NOISE * torch.rand(len(pixels), 1, 1, 1) * (torch.rand(len(pixels), 1, 1, 1) < 0.75)
        latents = mean + std * torch.randn_like(mean) + strength * scale * torch.randn_like(mean)
        decoded = vae.decode(latents).sample.float()
    difference = decoded - pixels
    l1, l2 = difference.abs().mean(), difference.square().mean()
    edges = difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()
    kl = 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).mean()
    loss = l1 + l2 + 0.5 * edges + KL_WEIGHT * kl
    figures = {"l1": l1.item(), "l2": l2.item(), "edges": edges.item(), "kl": kl.item(), "std": scale.mean().item()}
    return figures, loss, scale


@torch.no_grad()
def standardise(vae: AutoencoderKL, *, spread: float = 1.0) -> None:
    """Fold mean 0, standard deviation `spread` per latent channel into the 1 x 1 convolutions before and after the latents."""
    _, images = drawings("generator", start=1_000_000, count=1024, kinds=KINDS)
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in to_tensor(images).split(64)])
    mean, std, channels = latents.mean((0, 2, 3)), latents.std((0, 2, 3)) / spread, latents.shape[1]
    before, after = vae.quant_conv, vae.post_quant_conv
    before.weight[:channels] /= std[:, None, None, None]
    before.bias[:channels] = (before.bias[:channels] - mean) / std
    before.bias[channels:] -= 2 * std.log()
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight *= std[None, :, None, None]


@torch.no_grad()
def error(vae: AutoencoderKL, noise: float) -> float:
    """Mean absolute error in grey levels (0..255) on unseen drawings, with noise of that size on the latents."""
    _, images = drawings("test", start=0, count=128, kinds=KINDS)
    pixels = to_tensor(images)
    latents = vae.encode(pixels).latent_dist.mean
    decoded = vae.decode(latents + noise * torch.randn_like(latents)).sample
    return 127.5 * (decoded.clamp(-1, 1) - pixels).abs().mean().item()


if __name__ == "__main__":
    main()
