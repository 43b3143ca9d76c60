"""What the four trainings share: a wall-clock schedule, a moving average of weights, checkpoints, batches of drawings.

The learning rate follows the clock, not the step count: a training is told how many minutes it has, and anneals to zero
in that time on any machine, which matters more for the result than the number of steps.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.models.demo.grammar import Scene, drawing
from pipeline.models.demo.render import render

WEIGHTS = Path(__file__).parent / "weights"


class Schedule:
    """Learning rate by wall clock: linear warm-up over the first `warmup` share of the time, then cosine to zero."""

    def __init__(self, minutes: float, *, base_lr: float, warmup: float = 0.03, spent_seconds: float = 0.0) -> None:
        self.total_seconds = minutes * 60
        self.base_lr, self.warmup = base_lr, warmup
        self.start = time.monotonic() - spent_seconds

    @property
    def spent_seconds(self) -> float:
        """Training time so far, over all restarts."""
        return time.monotonic() - self.start

    @property
    def share(self) -> float:
        """Share of the time that is gone, 0..1."""
        return min(1.0, self.spent_seconds / self.total_seconds)

    def set_lr(self, optimizer: torch.optim.Optimizer) -> float:
        """Set and return the learning rate of this moment."""
        share = self.share
        ramp = min(1.0, (share + 1e-4) / self.warmup)
        lr = self.base_lr * ramp * 0.5 * (1 + math.cos(math.pi * max(0.0, share - self.warmup) / (1 - self.warmup)))
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        return lr


class Average:
    """Exponential moving average of a module's parameters (Polyak averaging), with a shorter memory at the start."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.values = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the parameters after one more step."""
        self.steps += 1
        keep = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.values[name].lerp_(value, 1 - keep)


def arguments(description: str | None, *, minutes: float, seed: int) -> argparse.ArgumentParser:
    """The command line that all trainings share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=minutes, help="wall-clock training time (default %(default)s)")
    parser.add_argument("--seed", type=int, default=seed, help="seed of weights, order and noise (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of a process (default %(default)s)")
    parser.add_argument("--ranks", type=int, default=1, help="processes that share the work (default %(default)s)")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder of the weights (default %(default)s)")
    return parser


def run_ranks(train: Callable[[int, argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Call `train(rank, args)` in `args.ranks` processes of `args.threads` threads, joined in one process group."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_joined, (train, args, f"file://{folder}/ranks"), nprocs=args.ranks)


def _joined(rank: int, train: Callable[[int, argparse.Namespace], None], args: argparse.Namespace, meeting: str) -> None:
    torch.set_num_threads(args.threads)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=args.ranks)
    train(rank, args)
    dist.destroy_process_group()


def agreed(value: float) -> float:
    """Rank 0's value, on every rank."""
    told = torch.tensor([value])
    dist.broadcast(told, 0)
    return told.item()


def average_gradients(model: nn.Module) -> None:
    """Give every rank the mean of all ranks' gradients."""
    if (ranks := dist.get_world_size()) > 1:
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.div_(ranks).split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def drawings(split: str, *, start: int, count: int, kinds: tuple[str, ...] = ("",)) -> tuple[list[Scene], NDArray[np.uint8]]:
    """Scenes and pixels (N, 64, 64, 3) of drawings `start` .. `start + count - 1`, the kinds taken in turn."""
    scenes, images = [], []
    for index in range(start, start + count):
        scene, seed = drawing(split, index, kind=kinds[index % len(kinds)])
        scenes.append(scene)
        images.append(render(scene, seed))
    return scenes, np.stack(images)


def to_tensor(images_NHWC: NDArray[np.uint8]) -> Tensor:
    """uint8 (N, H, W, 3) -> float32 (N, 3, H, W) in -1..1."""
    return torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).float() / 127.5 - 1


def batches(split: str, *, size: int, kinds: tuple[str, ...] = ("",), start: int = 0) -> Iterator[tuple[list[Scene], NDArray[np.uint8]]]:
    """Endless batches of new drawings of a split."""
    while True:
        yield drawings(split, start=start, count=size, kinds=kinds)
        start += size


def report(step: int, schedule: Schedule, **figures: float) -> None:
    """One line of the training log on stdout."""
    text = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
    print(f"{schedule.spent_seconds / 60:6.1f} min  step {step:6d}  {text}", flush=True)


def write_checksums(folder: Path = WEIGHTS) -> dict[str, str]:
    """Write `sha256.json`: the sha256 of every weight file under `folder`, by path relative to it."""
    sums = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*.safetensors"))}
    write_json(folder / "sha256.json", sums)
    return sums


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON with a final newline, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")
