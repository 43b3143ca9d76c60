"""Makes `judge/`: the classifier that says what is really in a picture. About 10 minutes on one core.

Half of the drawings are malformed (see `malform.py`); they train the "well formed" output only. Of the others some have
their objects placed more freely than the generator's, and all are distorted mildly, so that a right picture is read right
wherever its objects are. The judge is never trained on generated pictures.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.models.demo.grammar import drawing
from pipeline.models.demo.judge import Judge, JudgeNetwork, split_logits
from pipeline.models.demo.malform import MILD_WARP_PX, STRONG_WARP_PX, bleed, distort, loosen, malformed
from pipeline.models.demo.muon import Muon, groups
from pipeline.models.demo.reading import HEADS, label_indices
from pipeline.models.demo.render import lay_out, paint
from pipeline.models.demo.training import Average, Schedule, arguments, drawings, report, to_tensor, write_json

BATCH = 96
BASE_LR = 2e-3
WIDTH = 32
KINDS = ("one", "two", "count")


def main() -> None:
    parser = arguments(__doc__, minutes=10, seed=4)
    parser.add_argument("--warm-start", type=Path, help="judge folder to start from")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    train(args.out / "judge", minutes=args.minutes, seed=args.seed, warm_start=args.warm_start)


def train(folder: Path, *, minutes: float, seed: int, warm_start: Path | None = None) -> None:
    """Train for `minutes`, then save the averaged weights as fp16."""
    network = Judge.load(warm_start).network if warm_start else JudgeNetwork(WIDTH)
    network.to(memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]
    optimizer = Muon(groups(network.named_parameters(), weight_decay=2e-2, muon_scale=8.0), lr=BASE_LR, betas=(0.9, 0.98))
    schedule, average = Schedule(minutes, base_lr=BASE_LR), Average(network, 0.995)
    generator = torch.Generator().manual_seed(seed)
    step = 20_000 if warm_start else 0
    while schedule.share < 1:
        schedule.set_lr(optimizer)
        images, target, formed, warp_px = examples(step * BATCH, BATCH)
        pixels = distort(to_tensor(images), warp_px, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(pixels.contiguous(memory_format=torch.channels_last)).float()
        loss, right = loss_and_accuracy(logits, target, formed)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update(network)
        if step % 50 == 0:
            report(step, schedule, loss=loss.item(), right=right)
        step += 1
    network.load_state_dict(average.values)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half().contiguous() for name, value in network.state_dict().items()}, folder / "judge.safetensors")
    write_json(folder / "judge_config.json", {"width": WIDTH, "heads": HEADS})
    examine(Judge.load(folder))


def examples(start: int, count: int, *, split: str = "judge") -> tuple[NDArray[np.uint8], Tensor, Tensor, Tensor]:
    """Pixels (N, 64, 64, 3), labels (N, heads), well formed (N,) and the warp to apply in pixels (N,)."""
    images, target, formed, warp_px = [], [], [], []
    for index in range(start, start + count):
        scene, seed = drawing(split, index, kind=KINDS[index % 3])
        rng = random.Random(f"example/{seed}")
        layout = lay_out(scene, rng)
        if scene.kind != "one" and rng.random() < 0.35:
            layout = loosen(scene, layout, rng)
        wrong = malformed(scene, layout, rng) if rng.random() < 0.5 else None
        wobbly, bled = rng.random() < 0.06, wrong is None and rng.random() < 0.08
        warp = STRONG_WARP_PX * rng.uniform(1.0, 1.6) if wobbly else MILD_WARP_PX * rng.random()
        images.append(bleed(layout, rng) if bled else paint(wrong or layout))
        target.append(label_indices(scene))
        formed.append(float(wrong is None and not wobbly and not bled))
        warp_px.append(warp)
    return np.stack(images), torch.tensor(target), torch.tensor(formed), torch.tensor(warp_px)


def loss_and_accuracy(logits: Tensor, target: Tensor, formed: Tensor) -> tuple[Tensor, float]:
    """Cross entropies (labels only where well formed) and the share of examples read entirely right."""
    good, parts = split_logits(logits)
    loss = 3 * nn.functional.binary_cross_entropy_with_logits(good, formed)
    right = (good > 0) == (formed > 0)
    for k, part in enumerate(parts):
        each = nn.functional.cross_entropy(part, target[:, k], reduction="none")
        loss = loss + (each * formed).sum() / formed.sum()
        right &= (part.argmax(1) == target[:, k]) | (formed == 0)
    return loss, right.float().mean().item()


def examine(judge: Judge) -> None:
    """Print the share of unseen drawings read entirely right, and of malformed ones refused."""
    scenes, images = drawings("test", start=0, count=3000, kinds=KINDS)
    right = [reading.matches(scene) for reading, scene in zip(judge(images), scenes, strict=True)]
    print(f"unseen drawings entirely right: {np.mean(right):.4f}")
    images, _, formed, warp_px = examples(0, 3000, split="test")
    pixels = distort(to_tensor(images), warp_px, generator=torch.Generator().manual_seed(0))
    read = judge(((pixels + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    good = np.asarray([reading.well_formed for reading in read])
    print(f"malformed refused: {(~good[formed.numpy() == 0]).mean():.4f}, distorted accepted: {good[formed.numpy() == 1].mean():.4f}")


if __name__ == "__main__":
    main()
