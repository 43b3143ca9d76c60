"""A model of FLUX.1's shape at a tenth of its width and a fifth of its depth, random weights: for what only transformers have."""

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
    model = folder / "model"
    text_encoder_2, tokenizer_2 = tiny.t5(model)
    pipe = tiny.diffusers.FluxPipeline(
        scheduler=tiny.diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=tiny.vae(
            channels=16,
            block_out_channels=[16, 32, 64, 64],
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            layers_per_block=2,
            sample_size=SIZE_PX,
            shift_factor=0.1159,
            scaling_factor=0.3611,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        text_encoder=tiny.clip_text(),
        tokenizer=tiny.clip_tokenizer(model / "tokenizer"),
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        transformer=tiny.diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=64,
            num_layers=4,
            num_single_layers=8,
            attention_head_dim=64,
            num_attention_heads=5,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(8, 28, 28),
        ).eval(),
    )
    pipe.save_pretrained(model)
    tiny_clip.make(folder / "clip")
    config = {
        "prompts": [f"a photograph of {number} red circles" for number in range(32)],
        "model": {"id": "model", "dtype": "bfloat16"},
        "sampling": {"steps": STEPS, "guidance_scale": 0.0, "batch_size": 4, "width": SIZE_PX, "height": SIZE_PX},
        "scorers": {"clip": "clip"},
        "output": {"shard_size": 8},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(config))
    return folder / "job.yaml"
