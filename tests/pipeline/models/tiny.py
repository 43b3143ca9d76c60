"""Tiny diffusers models with random weights, in the formats that people have on disk. Nothing is downloaded.

Each maker writes a whole model folder from a fixed seed. ``BUILDERS`` names them by family.
"""

import gzip
import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import load_file, save_file

diffusers: Any = importlib.import_module("diffusers")  # both load lazily, which no type checker follows
transformers: Any = importlib.import_module("transformers")

_TEXT: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "projection_dim": 32,
    "max_position_embeddings": 77,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}


def clip_tokenizer(folder: Path) -> Any:
    """CLIP's own vocabulary, from the merges that open_clip carries."""
    folder.mkdir(parents=True, exist_ok=True)
    source = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    merges = gzip.decompress(source.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    letters = list(open_clip.tokenizer.bytes_to_unicode().values())
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge.split()) for merge in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def clip_text(*, projection: bool = False, **changes: Any) -> Any:
    """A CLIP text encoder of 32 channels."""
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return kind(transformers.CLIPTextConfig(**_TEXT | changes)).eval()


def t5(folder: Path) -> tuple[Any, Any]:
    """A T5 encoder of 32 channels and a word tokenizer for it."""
    import tokenizers

    words = ["<pad>", "</s>", "<unk>", "a", "red", "blue", "square", "circle"]
    vocabulary = {word: index for index, word in enumerate(words)}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    raw.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )
    config = transformers.T5Config(vocab_size=16, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    return transformers.T5EncoderModel(config).eval(), tokenizer


def vae(*, channels: int = 4, **changes: Any) -> Any:
    """An autoencoder with one halving: latents are half as wide as the image."""
    settings: dict[str, Any] = {
        "block_out_channels": [32, 32],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "latent_channels": channels,
        "sample_size": 32,
        "norm_num_groups": 8,
    }
    return diffusers.AutoencoderKL(**settings | changes).eval()


def unet(**changes: Any) -> Any:
    """A U-Net of two levels."""
    settings: dict[str, Any] = {
        "block_out_channels": (32, 32),
        "layers_per_block": 1,
        "sample_size": 16,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 8,
        "norm_num_groups": 8,
    }
    return diffusers.UNet2DConditionModel(**settings | changes).eval()


def scheduler(prediction_type: str = "epsilon") -> Any:
    """Stable Diffusion's own noise schedule."""
    return diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def sd(folder: Path, *, prediction_type: str = "epsilon", channels: int = 4, **network: Any) -> Path:
    """Stable Diffusion 1: 32 px, U-Net, one text encoder."""
    torch.manual_seed(0)
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae(channels=channels),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(folder / "tokenizer"),
        unet=unet(in_channels=channels, out_channels=channels, **network),
        scheduler=scheduler(prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    return folder


def sdxl(folder: Path) -> Path:
    """SDXL: two text encoders, pooled embeddings, size conditioning."""
    torch.manual_seed(0)
    tokenizer = clip_tokenizer(folder / "tokenizer")
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=clip_text(),
        text_encoder_2=clip_text(projection=True),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet(
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=1,
            projection_class_embeddings_input_dim=80,
            cross_attention_dim=64,
        ),
        scheduler=scheduler(),
        add_watermarker=False,
    )
    pipe.save_pretrained(folder)
    return folder


def sd3(folder: Path) -> Path:
    """Stable Diffusion 3: a flow-matching transformer with three text encoders."""
    torch.manual_seed(0)
    tokenizer = clip_tokenizer(folder / "tokenizer")
    text_encoder_3, tokenizer_3 = t5(folder)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=1,
        in_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pooled_projection_dim=64,
        out_channels=16,
        pos_embed_max_size=32,
    )
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae(channels=16, shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip_text(projection=True),
        tokenizer=tokenizer,
        text_encoder_2=clip_text(projection=True, hidden_act="gelu"),
        tokenizer_2=tokenizer,
        text_encoder_3=text_encoder_3,
        tokenizer_3=tokenizer_3,
    )
    pipe.save_pretrained(folder)
    return folder


def flux(folder: Path, *, guidance_embeds: bool = False) -> Path:
    """FLUX.1: packed latents, a guidance input or none."""
    torch.manual_seed(0)
    tokenizer = clip_tokenizer(folder / "tokenizer")
    text_encoder_2, tokenizer_2 = t5(folder)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance_embeds,
    )
    pipe = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae(shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip_text(),
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        transformer=transformer.eval(),
    )
    pipe.save_pretrained(folder)
    return folder


def upscaler(folder: Path) -> Path:
    """Stable Diffusion's x4 upscaler: the U-Net sees the noisy low-resolution image beside the latents, and how noisy it is."""
    torch.manual_seed(0)
    pipe = diffusers.StableDiffusionUpscalePipeline(
        vae=vae(
            block_out_channels=[32, 32, 32],
            down_block_types=["DownEncoderBlock2D"] * 3,
            up_block_types=["UpDecoderBlock2D"] * 3,
            scaling_factor=0.08333,
        ),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(folder / "tokenizer"),
        unet=unet(in_channels=7, num_class_embeds=1000, sample_size=8),
        low_res_scheduler=diffusers.DDPMScheduler(),
        scheduler=scheduler("v_prediction"),
        max_noise_level=350,
    )
    pipe.save_pretrained(folder)
    return folder


def latent_upscaler(folder: Path) -> Path:
    """Stable Diffusion's x2 upscaler: the U-Net sees the latents of the image beside its own, and a summary of the prompt."""
    torch.manual_seed(0)
    pipe = diffusers.StableDiffusionLatentUpscalePipeline(
        vae=vae(),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(folder / "tokenizer"),
        unet=unet(in_channels=8, out_channels=5, sample_size=32, time_cond_proj_dim=128 + 32),
        scheduler=diffusers.EulerDiscreteScheduler(prediction_type="sample"),
    )
    pipe.save_pretrained(folder)
    return folder


def inpainter(folder: Path) -> Path:
    """Stable Diffusion's own inpainting model: mask and masked latents are channels of the U-Net's input."""
    torch.manual_seed(0)
    pipe = diffusers.StableDiffusionInpaintPipeline(
        vae=vae(),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(folder / "tokenizer"),
        unet=unet(in_channels=9),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    return folder


def lora(path: Path, model: Path, seed: int, *, part: str = "unet", layers: str = r"\.to_[qv]\.weight") -> str:
    """LoRA weights of rank 2, random and strong, for the layers of a part whose names match."""
    generator, made = torch.Generator().manual_seed(seed), {}
    [weights] = (model / part).glob("*.safetensors")
    for name, weight in load_file(weights).items():
        if re.search(layers, name):
            stem = f"{part}.{name.removesuffix('.weight')}"
            made[f"{stem}.lora_A.weight"] = torch.randn(2, weight.shape[1], generator=generator)
            made[f"{stem}.lora_B.weight"] = torch.randn(weight.shape[0], 2, generator=generator)
    save_file(made, path)
    return str(path)


def sd_wide(folder: Path) -> Path:
    """Latents of 16 channels, as the bundled model's."""
    return sd(folder, channels=16)


def controlnet(folder: Path, family: str, *, seed: int = 1) -> Path:
    """A ControlNet for the tiny model of a family, with random weights where a new one has zeros."""
    network = _CONTROLNETS[family](folder.parent)
    torch.manual_seed(seed)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    network.save_pretrained(folder)
    return folder


def sd_for_adapters(folder: Path) -> Path:
    """With attention in the first block, as Stable Diffusion has it: a T2I-Adapter's features are added before it halves."""
    blocks: dict[str, Any] = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return sd(folder, **blocks)


def t2i_adapter(folder: Path, family: str, **changes: Any) -> Path:
    """A T2I-Adapter for the tiny U-Net, as wide and as often halved: of ``sd_for_adapters``, or of SDXL, which halves first."""
    torch.manual_seed(1)
    settings: dict[str, Any] = {"channels": [32, 32], "num_res_blocks": 1, "downscale_factor": 2}
    if family.startswith("sdxl"):
        settings |= {"adapter_type": "full_adapter_xl", "channels": [32] * 4, "downscale_factor": 4}
    network = diffusers.T2IAdapter(**settings | changes)
    network.save_pretrained(folder)
    return folder


def ip_adapter(folder: Path, model: Path, **changes: torch.Tensor) -> dict[str, str]:
    """An IP-Adapter for a tiny U-Net, with the CLIP that reads its images; what the configuration says of it."""
    torch.manual_seed(1)
    clip = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8, projection_dim=16
    )
    transformers.CLIPVisionModelWithProjection(clip).save_pretrained(folder / "image_encoder")
    core = diffusers.UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    width = core.config.cross_attention_dim
    made = {"image_proj.proj.weight": torch.randn(4 * width, 16), "image_proj.proj.bias": torch.randn(4 * width)}
    made |= {"image_proj.norm.weight": torch.ones(width), "image_proj.norm.bias": torch.zeros(width)}
    crossed = [name.removesuffix(".processor") for name in core.attn_processors if "attn2" in name]
    for number, name in enumerate(crossed):
        shape = core.get_submodule(name).to_k.weight.shape
        made |= {f"ip_adapter.{1 + 2 * number}.to_{part}_ip.weight": torch.randn(*shape) for part in "kv"}
    save_file(made | changes, folder / "adapter.safetensors")
    return {"id": str(folder), "file": "adapter.safetensors", "image_encoder": "image_encoder"}


def _unet_controlnet(folder: Path, family: str) -> Any:
    core = diffusers.UNet2DConditionModel.from_pretrained(BUILDERS[family](folder / f"base-{family}"), subfolder="unet")
    return diffusers.ControlNetModel.from_unet(core, conditioning_embedding_out_channels=(16, 32))


def _sd3_controlnet(folder: Path) -> Any:
    return diffusers.SD3ControlNetModel(
        sample_size=16,
        patch_size=1,
        in_channels=16,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pooled_projection_dim=64,
        out_channels=16,
        pos_embed_max_size=32,
    )


def _flux_controlnet(folder: Path) -> Any:
    return diffusers.FluxControlNetModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
    )


def _qwen_image_controlnet(folder: Path) -> Any:
    return diffusers.QwenImageControlNetModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )


_CONTROLNETS: dict[str, Callable[[Path], Any]] = {
    "sd": lambda folder: _unet_controlnet(folder, "sd"),
    "sdxl": lambda folder: _unet_controlnet(folder, "sdxl"),
    "sd3": _sd3_controlnet,
    "flux": _flux_controlnet,
    "qwen-image": _qwen_image_controlnet,
}
BUILDERS: dict[str, Callable[[Path], Path]] = {"sd": sd, "sdxl": sdxl, "sd3": sd3, "flux": flux}
