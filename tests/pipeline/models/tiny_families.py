"""Tiny models of further families, as ``tiny`` makes those of Stable Diffusion and FLUX. Nothing is downloaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def if_superresolution(folder: Path) -> Path:
    """DeepFloyd IF, second stage: no text encoder of its own, the smaller image as channels, and how noisy that is."""
    torch.manual_seed(0)
    unet = tiny.unet(
        sample_size=64,
        in_channels=6,
        out_channels=6,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        class_embed_type="timestep",
        cross_attention_norm="group_norm",
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
    )
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", thresholding=True, variance_type="learned_range")
    pipe = diffusers.IFSuperResolutionPipeline(
        tokenizer=None,
        text_encoder=None,
        unet=unet,
        scheduler=scheduler,
        image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    return folder


def sdxl_refiner(folder: Path) -> Path:
    """SDXL's refiner: one text encoder, conditioned on an aesthetic score."""
    torch.manual_seed(0)
    pipe = diffusers.StableDiffusionXLImg2ImgPipeline(
        vae=tiny.vae(),
        text_encoder=None,
        text_encoder_2=tiny.clip_text(projection=True),
        tokenizer=None,
        tokenizer_2=tiny.clip_tokenizer(folder / "tokenizer_2"),
        unet=tiny.unet(
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=1,
            projection_class_embeddings_input_dim=72,
        ),
        scheduler=tiny.scheduler(),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
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


def chat_tokenizer(folder: Path) -> Any:
    """The word tokenizer with the chat template of Qwen3, cut down."""
    _, tokenizer = tiny.t5(folder)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return tokenizer


def qwen3(kind: Any, *, layers: int = 3) -> Any:
    """A Qwen3 of 32 channels."""
    config = transformers.Qwen3Config(
        vocab_size=16,
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
        eos_token_id=1,
    )
    return kind(config).eval()


def z_image(folder: Path) -> Path:
    """Z-Image: one stream of text and image tokens, Qwen3 as the text encoder."""
    torch.manual_seed(0)
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=16,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[8, 4, 4],
        axes_lens=[512, 64, 64],
    )
    for name in ("x_pad_token", "cap_pad_token"):
        torch.nn.init.normal_(getattr(transformer, name), std=0.02)  # not initialised when it is new
    pipe = diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=tiny.vae(channels=16, shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=qwen3(transformers.Qwen3Model),
        tokenizer=chat_tokenizer(folder),
        transformer=transformer.eval(),
    )
    pipe.save_pretrained(folder)
    return folder


def flux_2_klein(folder: Path) -> Path:
    """FLUX.2 [klein], not distilled: hidden states of several layers of Qwen3, patches in the autoencoder."""
    torch.manual_seed(0)
    pipe = diffusers.Flux2KleinPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=flux_2_vae(),
        text_encoder=qwen3(transformers.Qwen3ForCausalLM, layers=27),  # it reads layers 9, 18 and 27
        tokenizer=chat_tokenizer(folder),
        transformer=flux_2_transformer(joint_attention_dim=96, guidance_embeds=False),
    )
    pipe.save_pretrained(folder)
    return folder


def flux_2_dev(folder: Path) -> Path:
    """FLUX.2 [dev]: the scale is an input, hidden states of several layers of Mistral 3, whose processor reads images too."""
    torch.manual_seed(0)
    _, tokenizer = tiny.t5(folder)
    tokenizer.add_tokens(["[IMG]", "[IMG_BREAK]", "[IMG_END]"])
    text = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    config = transformers.Mistral3Config(
        text_config=transformers.MistralConfig(vocab_size=32, num_hidden_layers=30, pad_token_id=0, eos_token_id=1, **text),
        vision_config=transformers.PixtralVisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
        ),
    )
    processor = transformers.PixtralProcessor(
        transformers.PixtralImageProcessor(patch_size=8, size={"longest_edge": 32}),
        tokenizer,
        patch_size=8,
        chat_template="{% for message in messages %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endfor %}",
    )
    pipe = diffusers.Flux2Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=flux_2_vae(),
        text_encoder=transformers.Mistral3ForConditionalGeneration(config).eval(),  # it reads layers 10, 20 and 30
        tokenizer=processor,
        transformer=flux_2_transformer(joint_attention_dim=96),
    )
    pipe.save_pretrained(folder)
    return folder


def flux_2_vae() -> Any:
    """FLUX.2's autoencoder, one halving before the patches of 2 x 2."""
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
    )
    return vae.eval()


def flux_2_transformer(**changes: Any) -> Any:
    """FLUX.2's transformer, one block of each kind."""
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        axes_dims_rope=(4, 4, 4, 4),
        **changes,
    )
    return transformer.eval()


def sana(folder: Path) -> Path:
    """Sana: linear attention, a deep-compression autoencoder, Gemma 2 as the text encoder."""
    torch.manual_seed(0)
    _, tokenizer = tiny.t5(folder)
    config = transformers.Gemma2Config(
        vocab_size=16,
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
        eos_token_id=1,
    )
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=32,
        sample_size=8,
    )
    blocks = {"block_types": ("ResBlock", "ResBlock", "ResBlock"), "block_out_channels": (8, 8, 8), "layers_per_block": (1, 1, 1)}
    sides = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in blocks.items()}
    vae = diffusers.AutoencoderDC(
        latent_channels=4, attention_head_dim=4, encoder_qkv_multiscales=((), (), ()), decoder_qkv_multiscales=((), (), ()), **sides
    )
    pipe = diffusers.SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=transformers.Gemma2Model(config).eval(),
        vae=vae.eval(),
        transformer=transformer.eval(),
        scheduler=diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )
    pipe.save_pretrained(folder)
    return folder


def hunyuan_dit(folder: Path) -> Path:
    """HunyuanDiT: a transformer that reads BERT and T5."""
    torch.manual_seed(0)
    text_encoder_2, tokenizer_2 = tiny.t5(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "square", "circle"]
    bert = transformers.BertConfig(
        vocab_size=16, hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=77
    )
    transformer = diffusers.HunyuanDiT2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        hidden_size=32,
        cross_attention_dim=32,
        cross_attention_dim_t5=32,
        pooled_projection_dim=16,
        activation_fn="gelu-approximate",
    )
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.1)
    pipe = diffusers.HunyuanDiTPipeline(
        vae=tiny.vae(  # the pipeline counts on three halvings
            block_out_channels=[32] * 4, down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4
        ),
        text_encoder=transformers.BertModel(bert).eval(),
        tokenizer=transformers.BertTokenizer({word: number for number, word in enumerate(words)}, model_max_length=77),
        transformer=transformer.eval(),
        scheduler=diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.02, beta_schedule="scaled_linear", prediction_type="v_prediction"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
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
    "z-image": z_image,
    "flux-2-klein": flux_2_klein,
    "flux-2-dev": flux_2_dev,
    "sana": sana,
    "hunyuan-dit": hunyuan_dit,
    "kandinsky-2.2": kandinsky,
    "deepfloyd-if": deepfloyd_if,
    "ddpm": ddpm,
    "dit": dit,
}
