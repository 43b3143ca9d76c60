"""How good the demo models are: `python -m pipeline.models.demo.evaluate --draws 1000`.

Draws scenes of the whole grammar with a bare StableDiffusionPipeline loop at the demo's own settings (`settings.json`),
lets the judge read every picture and CLIP score it, and prints how many are exactly what the prompt says, for each kind,
before and after the CLIP threshold. `table` is a pure function of readings, scenes and cosines, so a run's dataset can be
measured with it as well.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image

from pipeline.models.demo.grammar import KINDS, Scene, sample_scenes
from pipeline.models.demo.judge import Judge
from pipeline.models.demo.reading import Reading

HERE = Path(__file__).parent
WEIGHTS = HERE / "weights"
EVALUATION_SEED = 20_000


@dataclass(frozen=True)
class Row:
    """One line of the table; shares are 0..1, NaN where there is nothing to count."""

    kind: str
    draws: int
    exact: float
    kept: float
    exact_of_kept: float


def settings() -> dict[str, Any]:
    """The demo's own sampling settings."""
    return json.loads((HERE / "settings.json").read_text())


def table(scenes: Sequence[Scene], readings: Sequence[Reading], cosines: NDArray[np.float32], *, threshold: float) -> list[Row]:
    """A row for each kind, and one for all of them: shares exactly right, kept, and exactly right of those kept."""
    kinds = np.asarray([scene.kind for scene in scenes])
    right = np.asarray([reading.matches(scene) for reading, scene in zip(readings, scenes, strict=True)])
    kept = np.asarray(cosines) >= threshold
    rows = [(kind, kinds == kind) for kind in KINDS] + [("all", np.ones(len(scenes), bool))]
    return [Row(kind, int(of.sum()), _share(right[of]), _share(kept[of]), _share(right[of & kept])) for kind, of in rows]


def format_table(rows: Sequence[Row]) -> str:
    """The table as Markdown."""
    lines = ["| kind | draws | exactly right | kept by CLIP | exactly right of those kept |", "|---|---|---|---|---|"]
    lines += [f"| {row.kind} | {row.draws} | {row.exact:.1%} | {row.kept:.1%} | {row.exact_of_kept:.1%} |" for row in rows]
    return "\n".join(lines)


def load_pipeline(folder: Path, dtype: torch.dtype) -> StableDiffusionPipeline:
    """The generator, as plain diffusers loads it."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, local_files_only=True, safety_checker=None
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: StableDiffusionPipeline, scenes: Sequence[Scene], *, seed: int, options: dict[str, Any]) -> NDArray[np.uint8]:
    """Pictures of the scenes, uint8 (N, 64, 64, 3); picture k starts from the noise of seed `seed + k`, whatever its batch."""
    size, parts = options["batch_size"], []
    for start in range(0, len(scenes), size):
        batch = scenes[start : start + size]
        generators = [torch.Generator().manual_seed(seed + start + k) for k in range(len(batch))]
        images = pipeline(
            [scene.caption() for scene in batch],
            num_inference_steps=options["steps"],
            guidance_scale=options["guidance_scale"],
            generator=generators,
            output_type="np",
        ).images
        parts.append((images * 255).round().astype(np.uint8))
    return np.concatenate(parts)


class ClipScorer:
    """Cosine of each picture with its own caption, by the bundled CLIP."""

    def __init__(self, folder: Path = WEIGHTS / "clip") -> None:
        name = f"local-dir:{folder}"
        self.model, _, self.preprocess = open_clip.create_model_and_transforms(name, require_pretrained=True)
        self.tokenizer = open_clip.get_tokenizer(name)
        self.model.eval()

    @torch.inference_mode()
    def __call__(self, images_NHWC: NDArray[np.uint8], captions: Sequence[str]) -> NDArray[np.float32]:
        """Cosines (N,) of uint8 (N, H, W, 3) pictures with captions."""
        pixels = torch.stack([self.preprocess(Image.fromarray(image)) for image in images_NHWC])  # pyright: ignore
        tokens = self.tokenizer(list(captions))
        parts = zip(pixels.split(256), tokens.split(256), strict=True)
        return torch.cat(
            [(self.model.encode_image(p, normalize=True) * self.model.encode_text(t, normalize=True)).sum(1) for p, t in parts]
        ).numpy()


def contact_sheet(images_NHWC: NDArray[np.uint8], *, columns: int = 12, zoom: int = 2) -> Image.Image:
    """The pictures side by side, enlarged without smoothing."""
    rows = len(images_NHWC) // columns
    grid = images_NHWC[: rows * columns].reshape(rows, columns, *images_NHWC.shape[1:])
    sheet = Image.fromarray(grid.transpose(0, 2, 1, 3, 4).reshape(rows * 64, columns * 64, 3))
    return sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves the choice to torch")
    parser.add_argument("--sheet", type=Path, default=Path("contact_sheet.png"), help="picture file of the first 96 draws")
    for name, value in settings().items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    pipeline = load_pipeline(args.weights / "generator", getattr(torch, args.dtype))
    scenes, options = sample_scenes(args.draws, seed=EVALUATION_SEED), vars(args)
    draw(pipeline, scenes[: args.batch_size], seed=0, options=options)
    start = time.monotonic()
    images = draw(pipeline, scenes, seed=EVALUATION_SEED, options=options)
    seconds = time.monotonic() - start
    readings = Judge.load(args.weights / "judge")(images)
    cosines = np.ones(len(scenes), np.float32)
    if (args.weights / "clip" / "open_clip_model.safetensors").exists():
        cosines = ClipScorer(args.weights / "clip")(images, [scene.caption() for scene in scenes])
    print(format_table(table(scenes, readings, cosines, threshold=args.clip_threshold)))
    print(f"\n{len(scenes) / seconds:.1f} images/s with {torch.get_num_threads()} thread(s), guidance and decoding included")
    wrong = [(s.kind, *r.differences(s)) for r, s in zip(readings, scenes, strict=True) if not r.matches(s)]
    print("wrong labels:", Counter(wrong).most_common(12))
    contact_sheet(images[:96]).save(args.sheet)


def _share(flags: NDArray[np.bool_]) -> float:
    return float(flags.mean()) if len(flags) else float("nan")


if __name__ == "__main__":
    main()
