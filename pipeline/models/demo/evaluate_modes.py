"""How well the demo models follow images: `python -m pipeline.models.demo.evaluate_modes --draws 192`.

Every mode starts from drawings of the whole grammar, at the settings of `settings.json`:

- image-to-image: a drawing of a pair, and a prompt that wants one of the two in another colour, at strength 0.8.
- inpainting: the half of that drawing with the one object is painted anew, and the prompt wants it in another colour.
- outpainting: the left half of a drawing, and a prompt that names what is to be beside it.
- control: a drawing's Canny edges, and a prompt with other colours; against the same draws without the edges.
- super-resolution: a drawing at a quarter of its width and height; against bicubic interpolation (Keys 1981).

The judge reads every picture. Edges agree if they lie within a pixel of each other: F1 of the shares of either that the
other has, as boundaries are compared in segmentation (Martin et al. 2004, doi 10.1109/TPAMI.2004.1273918). PSNR in dB: in
inpainting and outpainting that of the kept part before its own pixels are put back; the autoencoder alone, on whole
drawings, is what it can be at best.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionImg2ImgPipeline, StableDiffusionUpscalePipeline
from numpy.typing import NDArray
from PIL import Image

from pipeline.inputs import canny
from pipeline.models.blend import Blend
from pipeline.models.demo.evaluate import EVALUATION_SEED, WEIGHTS, contact_sheet, settings
from pipeline.models.demo.grammar import Scene, sample_scenes
from pipeline.models.demo.judge import Judge
from pipeline.models.demo.render import render
from pipeline.models.demo.write_inputs import CANNY, HALF, SCALE, STRENGTH, half_mask, recoloured, shrunk

Images = NDArray[np.uint8]  # (N, 64, 64, 3)


@dataclass(frozen=True)
class Row:
    """One line of the table. `exact` is a share, `edges` an F1, both 0..1; `psnr` is in dB; None where it says nothing."""

    way: str
    exact: float
    edges: float | None = None
    psnr: float | None = None


class Modes:
    """The bundled models, as plain diffusers loads them, on drawings of `scenes`."""

    def __init__(self, draws: int, options: dict[str, Any], judge: Judge) -> None:
        self.options, self.judge = options, judge
        self.scenes = sample_scenes(draws, seed=EVALUATION_SEED)
        self.drawings = np.stack([render(scene, EVALUATION_SEED + k) for k, scene in enumerate(self.scenes)])
        self.sheet: list[Images] = []

    def image_to_image(self) -> list[Row]:
        pairs = [k for k, scene in enumerate(self.scenes) if scene.kind == "two"]
        rng = random.Random(EVALUATION_SEED)
        wanted = [recoloured(self.scenes[k], rng, which=[1]) for k in pairs]
        pipe = self._load(StableDiffusionImg2ImgPipeline, "generator", safety_checker=None)
        images = self._draw(pipe, wanted, lambda part: {"image": _pictures(self.drawings[pairs][part]), "strength": STRENGTH})
        self.sheet += [self.drawings[pairs][:12], images[:12]]
        return [Row("image-to-image: another colour", self._exact(images, wanted))]

    def painting(self) -> list[Row]:
        pairs = [k for k, scene in enumerate(self.scenes) if scene.kind == "two"]
        scenes, rng = [self.scenes[k] for k in pairs], random.Random(EVALUATION_SEED)
        beside = [replace(scene, relation="left of") for scene in scenes]
        rows_drawn = np.stack([render(scene, EVALUATION_SEED + k) for k, scene in zip(pairs, beside, strict=True)])
        ways = {
            "inpainting: another colour": (self.drawings[pairs], [recoloured(scene, rng, which=[1]) for scene in scenes], scenes),
            "outpainting: the right half": (rows_drawn, beside, beside),
        }
        pipe, found = self._load(StableDiffusionImg2ImgPipeline, "generator", safety_checker=None), []
        for way, (shown, wanted, sides) in ways.items():
            masks = np.stack([half_mask(scene.relation) for scene in sides]) > 0
            inits = shown if way.startswith("in") else np.concatenate([shown[:, :, :HALF], shown[:, :, HALF - 1 : HALF].repeat(HALF, 2)], 2)
            images = self._draw(pipe, wanted, lambda part, inits=inits, masks=masks: _painted(pipe, inits[part], masks[part], part))
            kept = [psnr(image[~mask][None, None], one[~mask][None, None]) for image, one, mask in zip(images, shown, masks, strict=True)]
            images = np.where(masks[..., None], images, inits)
            found.append(Row(way, self._exact(images, wanted), psnr=float(np.mean(kept))))
            self.sheet += [np.where(masks[..., None], inits // 2, inits)[:12], images[:12]]
        return [*found, self._autoencoder(pipe, pairs)]

    def _autoencoder(self, pipe: Any, pairs: Sequence[int]) -> Row:
        with torch.inference_mode():
            pixels = _pixels(self.drawings[pairs]) * 2 - 1
            decoded = pipe.vae.decode(pipe.vae.encode(pixels.to(self._dtype)).latent_dist.mode()).sample.float()
        images = ((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        scenes = [self.scenes[k] for k in pairs]
        return Row("the autoencoder alone", self._exact(images, scenes), psnr=psnr(images, self.drawings[pairs]))

    def control(self) -> list[Row]:
        rng = random.Random(EVALUATION_SEED)
        wanted = [recoloured(scene, rng, which=range(scene.count)) for scene in self.scenes]
        edges = np.stack([canny(drawing, *CANNY) for drawing in self.drawings])
        net = ControlNetModel.from_pretrained(WEIGHTS / "controlnet", dtype=self._dtype, local_files_only=True)
        pipe = self._load(StableDiffusionControlNetPipeline, "generator", safety_checker=None, controlnet=net)
        rows = []
        for way, scale in (("text alone", 0.0), ("text and edges", 1.0)):
            images = self._draw(
                pipe, wanted, lambda part, scale=scale: {"image": _pictures(edges[part]), "controlnet_conditioning_scale": scale}
            )
            agree = [edge_f1(canny(image, *CANNY), one) for image, one in zip(images, edges, strict=True)]
            rows.append(Row(f"control: {way}", self._exact(images, wanted), edges=float(np.mean(agree))))
        self.sheet += [edges[:12], images[:12]]
        return rows

    def super_resolution(self) -> list[Row]:
        small = [Image.fromarray(shrunk(drawing)) for drawing in self.drawings]
        bicubic = np.stack([np.asarray(one.resize((64, 64), Image.Resampling.BICUBIC)) for one in small])
        images = self._draw(self._load(StableDiffusionUpscalePipeline, "upscaler"), self.scenes, lambda part: {"image": small[part]})
        self.sheet += [bicubic[:12], images[:12]]
        return [
            Row(f"super-resolution x{SCALE}: {way}", self._exact(made, self.scenes), psnr=psnr(made, self.drawings))
            for way, made in (("bicubic", bicubic), ("demo-upscaler", images))
        ]

    @property
    def _dtype(self) -> torch.dtype:
        return getattr(torch, self.options["dtype"])

    def _load(self, kind: Any, folder: str, **extra: Any) -> Any:
        pipe = kind.from_pretrained(WEIGHTS / folder, dtype=self._dtype, use_safetensors=True, local_files_only=True, **extra)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def _draw(self, pipe: Any, scenes: Sequence[Scene], inputs: Callable[[slice], dict[str, Any]]) -> Images:
        """A picture of each scene; picture k starts from the noise of a seed of its own. `inputs` gives those of a slice."""
        size, parts = self.options["batch_size"], []
        for start in range(0, len(scenes), size):
            part = slice(start, min(start + size, len(scenes)))
            images = pipe(
                [scene.caption() for scene in scenes[part]],
                num_inference_steps=self.options["steps"],
                guidance_scale=self.options["guidance_scale"],
                generator=[torch.Generator().manual_seed(EVALUATION_SEED + k) for k in range(part.start, part.stop)],
                output_type="np",
                **inputs(part),
            ).images
            parts.append((images * 255).round().astype(np.uint8))
        return np.concatenate(parts)

    def _exact(self, images: Images, scenes: Sequence[Scene]) -> float:
        return float(np.mean([reading.matches(scene) for reading, scene in zip(self.judge(images), scenes, strict=True)]))


def edge_f1(found_HWC: NDArray[np.uint8], wanted_HWC: NDArray[np.uint8]) -> float:
    """Agreement of two edge maps, 0..1: harmonic mean of the shares of either within a pixel of the other. NaN without edges."""
    maps = [np.ascontiguousarray(edges[:, :, 0] > 0).astype(np.uint8) for edges in (found_HWC, wanted_HWC)]
    wide = [cv2.dilate(edges, np.ones((3, 3), np.uint8)) for edges in maps]
    if not maps[0].any() or not maps[1].any():
        return 0.0 if maps[0].any() or maps[1].any() else float("nan")
    precision, recall = maps[0][wide[1] > 0].sum() / maps[0].sum(), maps[1][wide[0] > 0].sum() / maps[1].sum()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def psnr(images_NHWC: Images, originals_NHWC: Images) -> float:
    """Peak signal-to-noise ratio in dB: mean over the pictures."""
    errors = ((images_NHWC.astype(np.float64) - originals_NHWC) ** 2).mean(axis=(1, 2, 3))
    return float((10 * np.log10(255**2 / errors)).mean())


def format_table(rows: Sequence[Row]) -> str:
    """The table as Markdown."""
    lines = ["| way | exactly right | edges (F1) | PSNR |", "|---|---|---|---|"]
    for row in rows:
        edges, decibels = f"{row.edges:.3f}" if row.edges is not None else "", f"{row.psnr:.1f} dB" if row.psnr is not None else ""
        lines.append(f"| {row.way} | {row.exact:.1%} | {edges} | {decibels} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=192)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves the choice to torch")
    parser.add_argument("--sheet", type=Path, help="picture file: inputs over outputs of each mode, 12 of them")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    modes = Modes(args.draws, settings(), Judge.load())
    print(format_table(modes.image_to_image() + modes.painting() + modes.control() + modes.super_resolution()))
    if args.sheet:
        contact_sheet(np.concatenate(modes.sheet)).save(args.sheet)


def _painted(pipe: Any, inits_NHWC: Images, masks_NHW: NDArray[np.bool_], part: slice) -> dict[str, Any]:
    """Arguments of an image-to-image pipeline that make it paint the masked parts only."""
    seeds = [EVALUATION_SEED + k for k in range(part.start, part.stop)]
    blend = Blend(pipe, _pixels(inits_NHWC), torch.from_numpy(masks_NHW).float()[:, None], seeds)

    def on_step_end(pipe: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"latents": blend(pipe, step, tensors["latents"])}

    return {"image": _pictures(inits_NHWC), "strength": 1.0, "callback_on_step_end": on_step_end}


def _pixels(images_NHWC: Images) -> torch.Tensor:
    return torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).float() / 255


def _pictures(images_NHWC: Images) -> list[Image.Image]:
    return [Image.fromarray(image) for image in images_NHWC]


if __name__ == "__main__":
    main()
