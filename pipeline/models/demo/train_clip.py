"""Makes `clip/`: the dual encoder that scores pictures against prompts, in open_clip's own format. 33 minutes on one core.

Trained on drawings of its own split, apart from the generator, so that the two do not share mistakes.

- Batches are groups of prompts that differ in one respect (`neighbours`), so that the towers learn who owns which colour,
  the relation and the count, not only which words occur (hard negatives as in Yuksekgonul et al. 2023, arXiv 2210.01936).
- Loss: InfoNCE over the batch (Radford et al. 2021, arXiv 2103.00020) with all pictures of an equal meaning as positives,
  and SigLIP's sigmoid loss (Zhai et al. 2023, arXiv 2303.15343), which judges each pair by itself: this makes cosines
  comparable across prompts, so one threshold can filter.
- One linear head reads the scene's labels off both embeddings and is then thrown away: it gives both towers one code.
- Malformed drawings (`malform`) are pictures that match no caption.
"""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.models.demo.grammar import Scene, drawing
from pipeline.models.demo.malform import MILD_WARP_PX, STRONG_WARP_PX, distort, loosen, malformed
from pipeline.models.demo.muon import Muon, groups
from pipeline.models.demo.neighbours import neighbour
from pipeline.models.demo.reading import HEADS, label_indices, labels
from pipeline.models.demo.render import lay_out, paint
from pipeline.models.demo.tokenizer import save_tokenizer
from pipeline.models.demo.training import Average, Schedule, arguments, drawings, report, to_tensor, write_json

GROUPS, GROUP_SIZE, MALFORMED = 26, 4, 52
BASE_LR = 1.5e-3
LABEL_WEIGHT = 0.3
EMBED_DIM = 192
KINDS = ("one", "two", "count", "one", "two")
PREPROCESS = {"size": [64, 64], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "resize_mode": "squash"}


def model_config(vocab_size: int) -> dict[str, object]:
    """open_clip's `model_cfg`: a small convolutional picture tower (ModifiedResNet) and a three-layer text tower."""
    return {
        "embed_dim": EMBED_DIM,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 24, "patch_size": None, "head_width": 64},
        "text_cfg": {
            "context_length": 20,
            "vocab_size": vocab_size,
            "hf_tokenizer_name": ".",
            "width": 128,
            "heads": 4,
            "layers": 3,
        },
    }


def main() -> None:
    parser = arguments(__doc__, minutes=33, seed=5)
    parser.add_argument("--warm-start", type=Path, help="safetensors file to start from")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    train(args.out / "clip", minutes=args.minutes, seed=args.seed, warm_start=args.warm_start)


def train(folder: Path, *, minutes: float, seed: int, warm_start: Path | None = None) -> None:
    """Train for `minutes`; the averaged weights are saved every five minutes and at the end, as fp16."""
    vocab_size = len(save_tokenizer(folder))
    write_json(folder / "open_clip_config.json", {"model_cfg": model_config(vocab_size), "preprocess_cfg": PREPROCESS})
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model = open_clip.CLIP(**model_config(vocab_size)).train()
    if warm_start:
        model.load_state_dict(load_file(warm_start))
    model.visual.to(memory_format=torch.channels_last)
    head, bias = nn.Linear(EMBED_DIM, sum(map(len, HEADS.values()))), nn.Parameter(torch.tensor(-8.0))
    parameters = [*model.parameters(), *head.parameters(), bias]
    named = [*model.named_parameters(), *head.named_parameters("heads"), ("bias", bias)]
    optimizer = Muon(groups(named, weight_decay=2e-2, muon_scale=8.0), lr=BASE_LR, betas=(0.9, 0.98))
    schedule = Schedule(minutes, base_lr=BASE_LR * (0.5 if warm_start else 1))
    average, rng, saved = Average(model, 0.997), random.Random(seed), 0.0
    generator = torch.Generator().manual_seed(seed)
    for step in itertools.count(100_000 if warm_start else 0):
        if schedule.share >= 1:
            break
        schedule.set_lr(optimizer)
        images, warp_px, scenes, formed = examples(step)
        pixels, distorted = to_tensor(images), warp_px > 0
        pixels[distorted] = distort(pixels[distorted], warp_px[distorted], generator=generator)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        tokens = tokenizer([scene.paraphrase(rng) for scene in scenes])
        with torch.autocast("cpu", torch.bfloat16):
            image, text = model.encode_image(pixels).float(), model.encode_text(tokens).float()
        loss, figures = losses(image, text, model.logit_scale.exp(), bias, head, scenes, formed)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=float(np.log(60)))
        average.update(model)
        if step % 50 == 0:
            report(step, schedule, loss=loss.item(), scale=model.logit_scale.exp().item(), **figures)
        if schedule.spent_seconds - saved > 300:
            saved = schedule.spent_seconds
            save(average, folder)
            examine(folder)
    save(average, folder)
    examine(folder)


def examples(step: int) -> tuple[NDArray[np.uint8], Tensor, list[Scene], Tensor]:
    """Pixels (B + M, 64, 64, 3), warps (B + M,) in pixels (0: none), scenes of the first B pictures, and which are well formed.

    The B = GROUPS * GROUP_SIZE scenes come in groups of neighbours; the M malformed pictures are spoilt drawings of them.
    """
    scenes, images, warps, formed = [], [], [], []
    for group in range(step * GROUPS, (step + 1) * GROUPS):
        scene, seed = drawing("clip", group, kind=KINDS[group % len(KINDS)])
        rng = random.Random(f"clip/{seed}")
        scenes += [scene] + [neighbour(scene, rng) for _ in range(GROUP_SIZE - 1)]
    rng = random.Random(f"clip/drawings/{step}")
    for index in range(len(scenes) + MALFORMED):
        scene = scenes[index] if index < len(scenes) else rng.choice(scenes)
        layout, wrong, warp = lay_out(scene, rng), None, MILD_WARP_PX * max(0.0, rng.uniform(-0.8, 1.0))
        if scene.kind != "one" and rng.random() < 0.25:
            layout = loosen(scene, layout, rng)
        if index >= len(scenes):
            wrong = malformed(scene, layout, rng) if rng.random() < 0.7 else None
            warp = STRONG_WARP_PX * rng.uniform(1.0, 1.6) if wrong is None else warp
        images.append(paint(wrong or layout))
        warps.append(warp)
        formed.append(index < len(scenes))
    return np.stack(images), torch.tensor(warps), scenes, torch.tensor(formed)


def losses(
    image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, head: nn.Linear, scenes: list[Scene], formed: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """The loss, and the share of pictures whose best caption is right, of malformed ones that match none."""
    image, text = nn.functional.normalize(image, dim=1), nn.functional.normalize(text, dim=1)
    meanings = {meaning: number for number, meaning in enumerate(dict.fromkeys(map(labels, scenes)))}
    key = torch.tensor([meanings[labels(scene)] for scene in scenes])
    count = len(scenes)
    match = torch.zeros(len(image), count)
    match[:count] = (key[:, None] == key[None, :]).float()
    logits = scale * image @ text.T
    sigmoid = -nn.functional.logsigmoid((logits + bias) * (2 * match - 1)).sum() / count
    by_image = -(match[:count] / match[:count].sum(1, keepdim=True) * logits[:count].log_softmax(1)).sum(1).mean()
    by_text = -(match / match.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0).mean()
    target = torch.tensor([label_indices(scene) for scene in scenes])
    coded = head(torch.cat((image[:count], text)) * 12.0).split([len(names) for names in HEADS.values()], dim=1)
    named = torch.stack([nn.functional.cross_entropy(part, target[:, k].repeat(2)) for k, part in enumerate(coded)]).sum()
    loss = sigmoid + 0.5 * (by_image + by_text) + LABEL_WEIGHT * named
    best = match[:count].gather(1, logits[:count].argmax(1, keepdim=True)).mean().item()
    refused = ((logits[count:] + bias).max(1).values < 0).float().mean().item()
    return loss, {"sigmoid": sigmoid.item(), "named": named.item(), "best": best, "refused": refused, "bias": bias.item()}


def save(average: Average, folder: Path) -> None:
    """Write the averaged weights as fp16, whole or not at all."""
    state = {name: (v.half() if v.is_floating_point() else v).contiguous() for name, v in average.values.items()}
    part = folder / "open_clip_model.part"
    save_file(state, part, metadata={"format": "pt"})
    part.replace(folder / "open_clip_model.safetensors")


@torch.inference_mode()
def examine(folder: Path, *, count: int = 600) -> None:
    """Print cosines of unseen drawings with their captions, with a neighbour's caption, and of malformed drawings."""
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}", require_pretrained=True)
    model.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    scenes, images = drawings("test", start=0, count=count, kinds=("one", "two", "count"))
    rng = random.Random(0)
    spoilt = [paint(malformed(s, lay_out(s, rng), rng) or lay_out(neighbour(s, rng), rng)) for s in scenes]
    picture, bad = (model.encode_image(to_tensor(part), normalize=True) for part in (images, np.stack(spoilt)))
    right = model.encode_text(tokenizer([scene.caption() for scene in scenes]), normalize=True)
    near = [[neighbour(scene, rng) for scene in scenes] for _ in range(6)]
    wrong = [(picture * model.encode_text(tokenizer([s.caption() for s in part]), normalize=True)).sum(1) for part in near]
    same = [[labels(a) == labels(b) for a, b in zip(part, scenes, strict=True)] for part in near]
    wrong = torch.stack(wrong).masked_fill(torch.tensor(same), -1.0).max(0).values
    cosine, spoilt_cosine = (picture * right).sum(1), (bad * right).sum(1)
    print(f"    right over the nearest of six wrong captions: {(cosine > wrong).float().mean():.4f}")
    for name, values in (("right", cosine), ("nearest wrong", wrong), ("malformed", spoilt_cosine)):
        quantiles = values.quantile(torch.tensor([0.01, 0.05, 0.5, 0.95, 0.99])).tolist()
        print(f"    cosine, {name}:", [round(quantile, 3) for quantile in quantiles], flush=True)


if __name__ == "__main__":
    main()
