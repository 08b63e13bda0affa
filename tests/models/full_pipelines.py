"""Folders of the full-size pipelines as their makers publish them: their configurations alone."""

import json
from pathlib import Path
from typing import Any

CLIP_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
}
CLIP_G: dict[str, Any] = {
    **CLIP_L,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
T5_XXL: dict[str, Any] = {
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_heads": 64,
    "num_layers": 24,
    "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
}


def _vae(channels: int, scale: float, shift: float | None = None) -> dict[str, Any]:
    quantized = {} if shift is None else {"use_quant_conv": False, "use_post_quant_conv": False}
    return {
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "latent_channels": channels,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "sample_size": 1024,
        "scaling_factor": scale,
        "shift_factor": shift,
        **quantized,
    }


_FLOW = {"num_train_timesteps": 1000, "shift": 3.0}
_EULER = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}

LAYOUTS: dict[str, tuple[str, dict[str, tuple[str, str, dict[str, Any]]]]] = {
    "sdxl": (
        "StableDiffusionXLPipeline",
        {
            "unet": (
                "diffusers",
                "UNet2DConditionModel",
                {
                    "addition_embed_type": "text_time",
                    "addition_time_embed_dim": 256,
                    "attention_head_dim": [5, 10, 20],
                    "block_out_channels": [320, 640, 1280],
                    "cross_attention_dim": 2048,
                    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
                    "in_channels": 4,
                    "out_channels": 4,
                    "layers_per_block": 2,
                    "projection_class_embeddings_input_dim": 2816,
                    "sample_size": 128,
                    "transformer_layers_per_block": [1, 2, 10],
                    "use_linear_projection": True,
                },
            ),
            "text_encoder": ("transformers", "CLIPTextModel", CLIP_L),
            "text_encoder_2": ("transformers", "CLIPTextModelWithProjection", CLIP_G),
            "vae": ("diffusers", "AutoencoderKL", _vae(4, 0.13025)),
            "scheduler": ("diffusers", "EulerDiscreteScheduler", _EULER),
        },
    ),
    "sd3": (
        "StableDiffusion3Pipeline",
        {
            "transformer": (
                "diffusers",
                "SD3Transformer2DModel",
                {
                    "attention_head_dim": 64,
                    "caption_projection_dim": 1536,
                    "in_channels": 16,
                    "joint_attention_dim": 4096,
                    "num_attention_heads": 24,
                    "num_layers": 24,
                    "out_channels": 16,
                    "patch_size": 2,
                    "pooled_projection_dim": 2048,
                    "pos_embed_max_size": 192,
                    "sample_size": 128,
                },
            ),
            "text_encoder": ("transformers", "CLIPTextModelWithProjection", CLIP_L),
            "text_encoder_2": ("transformers", "CLIPTextModelWithProjection", CLIP_G),
            "text_encoder_3": ("transformers", "T5EncoderModel", T5_XXL),
            "vae": ("diffusers", "AutoencoderKL", _vae(16, 1.5305, 0.0609)),
            "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler", _FLOW),
        },
    ),
    "flux": (
        "FluxPipeline",
        {
            "transformer": (
                "diffusers",
                "FluxTransformer2DModel",
                {
                    "attention_head_dim": 128,
                    "axes_dims_rope": [16, 56, 56],
                    "guidance_embeds": True,
                    "in_channels": 64,
                    "joint_attention_dim": 4096,
                    "num_attention_heads": 24,
                    "num_layers": 19,
                    "num_single_layers": 38,
                    "patch_size": 1,
                    "pooled_projection_dim": 768,
                },
            ),
            "text_encoder": ("transformers", "CLIPTextModel", CLIP_L),
            "text_encoder_2": ("transformers", "T5EncoderModel", T5_XXL),
            "vae": ("diffusers", "AutoencoderKL", _vae(16, 0.3611, 0.1159)),
            "scheduler": (
                "diffusers",
                "FlowMatchEulerDiscreteScheduler",
                {
                    **_FLOW,
                    "use_dynamic_shifting": True,
                    "base_shift": 0.5,
                    "max_shift": 1.15,
                    "base_image_seq_len": 256,
                    "max_image_seq_len": 4096,
                },
            ),
        },
    ),
}
WEIGHTS = {"sdxl": 2_567_463_684, "sd3": 2_028_328_000, "flux": 11_901_408_320}
"""Of the nets, as published."""


def write(folder: Path, name: str) -> Path:
    """The folder of one of `LAYOUTS`."""
    kind, components = LAYOUTS[name]
    index: dict[str, Any] = {"_class_name": kind}
    for component, (library, made, numbers) in components.items():
        index[component] = [library, made]
        (folder / component).mkdir(parents=True)
        file = "scheduler_config.json" if component == "scheduler" else "config.json"
        (folder / component / file).write_text(json.dumps({"_class_name": made, **numbers}))
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
