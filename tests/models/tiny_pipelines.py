"""Tiny diffusers folders of every layout, with random weights and tokenizers of their own; a second each."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
MORE = 2.0
"""Factor on the weights of what captions go through: small ones would leave no trace of a planted mistake."""


def clip_tokenizer(folder: Path) -> Any:
    """Bytes alone, no merges: 514 words."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def clip(projected: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=514,
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=32,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def vae(**options: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        **{
            "block_out_channels": (8, 16),
            "latent_channels": 4,
            "norm_num_groups": 4,
            "layers_per_block": 1,
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            **options,
        }
    )


def unet(**options: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        **{
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "sample_size": 16,
            "cross_attention_dim": 32,
            "attention_head_dim": 4,
            "norm_num_groups": 4,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            **options,
        }
    )


def sd15(folder: Path) -> Any:
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    return StableDiffusionPipeline(
        unet=unet(),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(folder),
        vae=vae(scaling_factor=0.18215),
        scheduler=PNDMScheduler(**SD, skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sd2(folder: Path) -> Any:
    from diffusers import DDIMScheduler

    pipeline = sd15(folder)
    pipeline.scheduler = DDIMScheduler(
        **SD, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    return pipeline


def sdxl(folder: Path) -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    net = unet(
        cross_attention_dim=64,
        attention_head_dim=(2, 4),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
        transformer_layers_per_block=(1, 2),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    return StableDiffusionXLPipeline(
        unet=net,
        text_encoder=clip(),
        text_encoder_2=clip(projected=True),
        tokenizer=clip_tokenizer(folder),
        tokenizer_2=clip_tokenizer(folder),
        vae=vae(scaling_factor=0.13025),
        scheduler=EulerDiscreteScheduler(**SD, timestep_spacing="leading", steps_offset=1),
    )


def words_tokenizer() -> Any:
    """Printable characters as T5's tokenizer has them: 99 words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [chr(code) for code in range(33, 127)]
    words = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        *((letter, -4.0) for letter in letters),
        ("▁", -3.0),
    ]
    tokenizer = Tokenizer(models.Unigram(words, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )


def t5(width: int = 32) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=99, d_model=width, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    return T5EncoderModel(config)


def bare_vae(**options: Any) -> Any:
    """As SD3 and Flux have it."""
    return vae(
        use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5, **options
    )


def sd3(folder: Path, **options: Any) -> Any:
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    net = SD3Transformer2DModel(
        sample_size=16,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=64,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
        pos_embed_max_size=16,
        **options,
    )
    return StableDiffusion3Pipeline(
        transformer=net,
        text_encoder=clip(projected=True),
        text_encoder_2=clip(projected=True),
        text_encoder_3=t5(64),
        tokenizer=clip_tokenizer(folder),
        tokenizer_2=clip_tokenizer(folder),
        tokenizer_3=words_tokenizer(),
        vae=bare_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def sd35(folder: Path) -> Any:
    """Normed queries and keys, and a second attention in its blocks, as 3.5 medium has them."""
    return sd3(folder, qk_norm="rms_norm", dual_attention_layers=(0,))


def flux(folder: Path, *, told: bool = True, **scheduler: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    net = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        axes_dims_rope=[4, 4, 8],
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=told,
    )
    own = scheduler or {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    return FluxPipeline(
        transformer=net,
        text_encoder=clip(),
        text_encoder_2=t5(),
        tokenizer=clip_tokenizer(folder),
        tokenizer_2=words_tokenizer(),
        vae=bare_vae(latent_channels=1),
        scheduler=FlowMatchEulerDiscreteScheduler(**own),
    )


def schnell(folder: Path) -> Any:
    return flux(folder, told=False, shift=1.0)


def turbo(folder: Path) -> Any:
    from diffusers import EulerDiscreteScheduler

    pipeline = sdxl(folder)
    pipeline.scheduler = EulerDiscreteScheduler(**SD, timestep_spacing="trailing")
    return pipeline


def pixart(folder: Path, *, sized: bool = False) -> Any:
    """With less noise at the end than the real one, whose 1/alpha of 158 leaves float32 no digits."""
    from diffusers import (
        DPMSolverMultistepScheduler,
        PixArtAlphaPipeline,
        PixArtSigmaPipeline,
        PixArtTransformer2DModel,
    )

    net = PixArtTransformer2DModel(
        sample_size=128 if sized else 16,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=32,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=24,
        norm_type="ada_norm_single",
    )
    return (PixArtAlphaPipeline if sized else PixArtSigmaPipeline)(
        transformer=net,
        text_encoder=t5(),
        tokenizer=words_tokenizer(),
        vae=vae(scaling_factor=0.13025),
        scheduler=DPMSolverMultistepScheduler(beta_end=0.01),
    )


def alpha(folder: Path) -> Any:
    return pixart(folder, sized=True)


def sana(folder: Path) -> Any:
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    net = SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=8,
        sample_size=8,
        timestep_scale=0.5,
    )
    autoencoder = AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    text = Gemma2Config(
        head_dim=8,
        hidden_size=8,
        initializer_range=0.5,
        intermediate_size=64,
        max_position_embeddings=8192,
        num_attention_heads=2,
        num_hidden_layers=1,
        num_key_value_heads=2,
        vocab_size=99,
        attn_implementation="eager",
    )
    return SanaPipeline(
        transformer=net,
        text_encoder=Gemma2Model(text),
        tokenizer=words_tokenizer(),
        vae=autoencoder,
        scheduler=DPMSolverMultistepScheduler(
            use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"
        ),
    )


MAKERS: dict[str, Callable[[Path], Any]] = {
    "sd15": sd15,
    "sd2": sd2,
    "sdxl": sdxl,
    "turbo": turbo,
    "sd3": sd3,
    "sd35": sd35,
    "flux": flux,
    "schnell": schnell,
    "pixart": pixart,
    "alpha": alpha,
    "sana": sana,
}


def make(layout: str, folder: Path) -> Path:
    """A folder of that layout, the same weights every time."""
    torch.manual_seed(0)
    pipeline = MAKERS[layout](folder.parent / f"{folder.name}-vocabulary")
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):
            part.eval()
            if name in ("unet", "transformer"):
                louder(part)
    pipeline.save_pretrained(folder)
    return folder


@torch.no_grad()
def louder(net: nn.Module) -> None:
    """Weights at which captions, sizes and guidance move the net's prediction."""
    for name, parameter in net.named_parameters():
        if parameter.ndim > 1 and any(word in name for word in ("attn2", "add_embedding", "to_v", "context")):
            parameter.mul_(MORE)
