"""A model of Stable Diffusion 1.5's shape at a tenth of its width, random weights: what a real U-Net does to two cores."""

from pathlib import Path

import torch
import yaml

from tests.pipeline.models import tiny
from tests.pipeline.scorers import tiny_clip

SIZE_PX = 256
STEPS = 8


def job(folder: Path) -> Path:
    """A model folder, a CLIP folder, and the configuration of a job over both."""
    torch.manual_seed(0)
    blocks = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    pipe = tiny.diffusers.StableDiffusionPipeline(
        vae=tiny.vae(
            block_out_channels=[16, 32, 64, 64],
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            layers_per_block=2,
            sample_size=SIZE_PX,
        ),
        text_encoder=tiny.clip_text(hidden_size=80, intermediate_size=320, num_hidden_layers=12),
        tokenizer=tiny.clip_tokenizer(folder / "model" / "tokenizer"),
        unet=tiny.unet(
            block_out_channels=(32, 64, 128, 128),
            layers_per_block=2,
            sample_size=SIZE_PX // 8,
            down_block_types=blocks,
            up_block_types=[block.replace("Down", "Up") for block in reversed(blocks)],
            cross_attention_dim=80,
        ),
        scheduler=tiny.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder / "model")
    tiny_clip.make(folder / "clip")
    config = {
        "prompts": [f"a photograph of {number} red circles" for number in range(32)],
        "model": {"id": "model", "dtype": "bfloat16"},
        "sampling": {"scheduler": "dpm++_2m", "steps": STEPS, "guidance_scale": 5.0, "batch_size": 4, "width": SIZE_PX, "height": SIZE_PX},
        "scorers": {"clip": "clip"},
        "output": {"shard_size": 16},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(config))
    return folder / "job.yaml"
