"""Tiny models of further families, as ``tiny`` makes those of Stable Diffusion and FLUX. Nothing is downloaded."""

import json
from collections.abc import Callable
from pathlib import Path

import torch

from tests.pipeline.models import tiny
from tests.pipeline.models.tiny import diffusers, transformers


def pixart(folder: Path) -> Path:
    """PixArt-Sigma: a transformer with cross-attention to T5."""
    torch.manual_seed(0)
    text_encoder, tokenizer = tiny.t5(folder)
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=16,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=32,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=32,
        use_additional_conditions=False,
    )
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.1)
    pipe = diffusers.PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=tiny.vae(),
        transformer=transformer.eval(),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )
    pipe.save_pretrained(folder)
    return folder


def deepfloyd_if(folder: Path) -> Path:
    """DeepFloyd IF, first stage: pixels, T5, learned variance."""
    torch.manual_seed(0)
    text_encoder, tokenizer = tiny.t5(folder)
    unet = tiny.unet(
        sample_size=32,
        in_channels=3,
        out_channels=6,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm",
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
    )
    scheduler = diffusers.DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", thresholding=True, dynamic_thresholding_ratio=0.95, variance_type="learned_range"
    )
    pipe = diffusers.IFPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    return folder


def kandinsky(folder: Path) -> Path:
    """Kandinsky 2.2: a prior from text to image embeddings, and a decoder; the plan of DALL-E 2."""
    torch.manual_seed(0)
    vision = transformers.CLIPVisionConfig(
        hidden_size=32, image_size=32, projection_dim=32, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2, patch_size=8
    )
    unet = tiny.unet(
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        out_channels=8,
        addition_embed_type="image",
        encoder_hid_dim=32,
        encoder_hid_dim_type="image_proj",
        resnet_time_scale_shift="scale_shift",
    )
    movq = diffusers.VQModel(
        block_out_channels=[32, 64],
        down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
        norm_num_groups=8,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
        latent_channels=4,
        layers_per_block=1,
    )
    prior = diffusers.PriorTransformer(num_attention_heads=2, attention_head_dim=8, embedding_dim=32, num_layers=1).eval()
    torch.nn.init.ones_(prior.clip_std)  # zeros when it is new
    pipe = diffusers.KandinskyV22CombinedPipeline(
        unet=unet,
        scheduler=diffusers.DDPMScheduler(beta_schedule="linear", beta_start=0.00085, beta_end=0.012, variance_type="learned_range"),
        movq=movq.eval(),
        prior_prior=prior,
        prior_image_encoder=transformers.CLIPVisionModelWithProjection(vision).eval(),
        prior_text_encoder=tiny.clip_text(projection=True),
        prior_tokenizer=tiny.clip_tokenizer(folder / "prior_tokenizer"),
        prior_scheduler=diffusers.UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0),
        prior_image_processor=transformers.CLIPImageProcessor(crop_size=32, size=32),
    )
    pipe.save_pretrained(folder)
    return folder


def ddpm(folder: Path) -> Path:
    """DDPM: pixels, no condition at all."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        block_out_channels=(32, 32),
        layers_per_block=1,
        sample_size=32,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )
    diffusers.DDPMPipeline(unet=unet.eval(), scheduler=diffusers.DDPMScheduler()).save_pretrained(folder)
    return folder


def dit(folder: Path) -> Path:
    """DiT: a transformer conditioned on one of four classes."""
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=16,
        num_layers=2,
        patch_size=4,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=1000,
    )
    torch.nn.init.normal_(transformer.proj_out_2.weight, std=0.1)
    pipe = diffusers.DiTPipeline(transformer=transformer.eval(), vae=tiny.vae(), scheduler=diffusers.DDIMScheduler())
    pipe.save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())  # save_pretrained leaves the names out; published folders have them
    labels = {"0": "tench", "1": "goldfish, Carassius auratus", "2": "a red square 0", "3": "a blue circle"}
    (folder / "model_index.json").write_text(json.dumps(index | {"id2label": labels}))
    return folder


def qwen_image(folder: Path) -> Path:
    """Qwen-Image: a transformer that reads the hidden states of a vision-language model, and a video VAE."""
    torch.manual_seed(0)
    _, tokenizer = tiny.t5(folder)
    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1_000_000.0}
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    config = transformers.Qwen2_5_VLConfig(text_config=text | {"vocab_size": 16, "rope_scaling": rope}, vision_config=vision)
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=24,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    pipe = diffusers.QwenImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae.eval(),
        text_encoder=transformers.Qwen2_5_VLForConditionalGeneration(config).eval(),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
    )
    pipe.save_pretrained(folder)
    return folder


def flux_dev(folder: Path) -> Path:
    """FLUX.1-dev: the guidance scale is an input."""
    return tiny.flux(folder, guidance_embeds=True)


def sd_v(folder: Path) -> Path:
    """Stable Diffusion 2 at 768 px: velocity prediction."""
    return tiny.sd(folder, prediction_type="v_prediction")


def lcm(folder: Path) -> Path:
    """A latent consistency model: few steps, the scale is an input of the U-Net."""
    torch.manual_seed(0)
    pipe = diffusers.LatentConsistencyModelPipeline(
        vae=tiny.vae(),
        text_encoder=tiny.clip_text(),
        tokenizer=tiny.clip_tokenizer(folder / "tokenizer"),
        unet=tiny.unet(time_cond_proj_dim=32),
        scheduler=diffusers.LCMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    return folder


BUILDERS: dict[str, Callable[[Path], Path]] = {
    "sd": tiny.sd,
    "sd-v": sd_v,
    "sdxl": tiny.sdxl,
    "sd3": tiny.sd3,
    "flux-schnell": tiny.flux,
    "flux-dev": flux_dev,
    "lcm": lcm,
    "pixart-sigma": pixart,
    "qwen-image": qwen_image,
    "kandinsky-2.2": kandinsky,
    "deepfloyd-if": deepfloyd_if,
    "ddpm": ddpm,
    "dit": dit,
}
