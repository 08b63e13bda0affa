"""Backbones: the generator's nets by name, with sizes that a laptop trains.

    mlp                the article's residual MLP             pooled text, z      images up to about 16x16
    unet_text          diffusers' UNet2DConditionModel        text and z tokens, pooled text
    unet_pooled        diffusers' UNet2DModel                 pooled text, z
    transformer_text   diffusers' PixArtTransformer2DModel    text and z tokens
    dit_label          diffusers' DiTTransformer2DModel       labels only

With `patch` p a U-Net works on [B, C·p², H/p, W/p] (pixel_unshuffle), which makes pixels affordable; the
transformers have patches of their own. token_dim, pooled_dim, z_dim: widths of the conditioner's tokens and
pooled vector and of the latent noise, 0 for what the net shall not take. heads, head_dim: of the attention.
"""

import math
from collections.abc import Sequence
from typing import Any

from lmsd.errors import Count, UserError
from lmsd.models.adapters import (
    LabelTransformer,
    PooledUNet,
    TextTransformer,
    TextUNet,
    TokenContext,
)
from lmsd.models.adapters import MLPBackbone as mlp

__all__ = ["dit_label", "mlp", "transformer_text", "unet_pooled", "unet_text"]


def _check_sides(image_size: int, patch: int, levels: int) -> None:
    if image_size % (patch * 2 ** (levels - 1)):
        raise UserError(
            f"net: side {image_size} does not divide by patch {patch} times 2^{levels - 1} "
            f"({levels} widths); take a smaller patch or fewer widths"
        )


def _flags(attention: Sequence[bool] | None, widths: Sequence[int]) -> Sequence[bool]:
    """Which levels attend; all but the first by default."""
    if attention is None:
        return [level > 0 or len(widths) == 1 for level in range(len(widths))]
    if len(attention) != len(widths):
        raise UserError(
            f"net: attention names {len(attention)} levels, widths {len(widths)}; make them equal"
        )
    return attention


def _unet(
    channels: int,
    image_size: int,
    widths: Sequence[int],
    *,
    blocks: int,
    patch: int,
    attention: Sequence[bool] | None,
    attending: str,
) -> dict[str, Any]:
    """What both U-Nets of diffusers are told alike; attending: prefix of their blocks with attention."""
    if not widths:
        raise UserError("net: widths is empty; name the channels of each level, e.g. [64, 128]")
    _check_sides(image_size, patch, len(widths))
    attends = _flags(attention, widths)
    return {
        "down_block_types": tuple(f"{attending if a else ''}DownBlock2D" for a in attends),
        "up_block_types": tuple(f"{attending if a else ''}UpBlock2D" for a in reversed(attends)),
        "sample_size": image_size // patch,
        "in_channels": channels * patch * patch,
        "out_channels": channels * patch * patch,
        "block_out_channels": tuple(widths),
        "layers_per_block": blocks,
        "norm_num_groups": math.gcd(32, *widths),
        "resnet_time_scale_shift": "scale_shift",
    }


def unet_text(
    channels: int,
    image_size: int,
    *,
    widths: Sequence[Count] = (64, 128),
    blocks: Count = 1,
    attention: Sequence[bool] | None = None,
    heads: Count = 4,
    patch: Count = 1,
    token_dim: int = 0,
    pooled_dim: int = 0,
    z_dim: int = 0,
    z_tokens: Count = 2,
) -> TextUNet:
    """The UNet2DConditionModel of diffusers; text and z are cross-attention tokens, pooled joins the time.

    widths: channels a level, multiples of 16; blocks: residual blocks a level; attention: which levels
    attend, true or false for each, null for all but the first; heads: of the attention; patch: side of the
    patches that pixels are folded into; z_tokens: tokens that z is spread over.
    """
    from diffusers import UNet2DConditionModel

    context = TokenContext(token_dim, z_dim=z_dim, count=z_tokens, dim=widths[0])
    sizes = _unet(
        channels, image_size, widths, blocks=blocks, patch=patch, attention=attention, attending="CrossAttn"
    )
    model: Any = UNet2DConditionModel(
        **sizes,
        attention_head_dim=heads,  # diffusers' name for the number of heads
        cross_attention_dim=context.dim,
        class_embed_type="simple_projection" if pooled_dim else None,
        projection_class_embeddings_input_dim=pooled_dim or None,
    )
    return TextUNet(
        model,
        channels,
        image_size,
        context=context,
        patch=patch,
        token_dim=token_dim,
        pooled_dim=pooled_dim,
        z_dim=z_dim,
    )


def unet_pooled(
    channels: int,
    image_size: int,
    *,
    widths: Sequence[Count] = (64, 128),
    blocks: Count = 1,
    attention: Sequence[bool] | None = None,
    head_dim: Count = 32,
    patch: Count = 1,
    pooled_dim: int = 0,
    z_dim: int = 0,
) -> PooledUNet:
    """The UNet2DModel of diffusers; pooled condition and z enter through its class embedding.

    widths: channels a level, multiples of 16; blocks: residual blocks a level; attention: which levels
    attend, true or false for each, null for all but the first; head_dim: width of a head; patch: side of the
    patches that pixels are folded into.
    """
    from diffusers import UNet2DModel

    for width, attends in zip(widths, _flags(attention, widths), strict=True):
        if attends and width < head_dim:
            raise UserError(
                f"net: a level of width {width} attends in heads of {head_dim}: lower net.head_dim"
            )
    sizes = _unet(
        channels, image_size, widths, blocks=blocks, patch=patch, attention=attention, attending="Attn"
    )
    model: Any = UNet2DModel(
        **sizes,
        attention_head_dim=head_dim,
        class_embed_type="identity" if pooled_dim + z_dim else None,
    )
    return PooledUNet(
        model,
        channels,
        image_size,
        patch=patch,
        pooled_dim=pooled_dim,
        z_dim=z_dim,
        time_dim=4 * widths[0],
    )


def transformer_text(
    channels: int,
    image_size: int,
    *,
    patch: Count = 2,
    layers: Count = 6,
    heads: Count = 4,
    head_dim: Count = 48,
    token_dim: int = 0,
    z_dim: int = 0,
    z_tokens: Count = 2,
) -> TextTransformer:
    """The PixArtTransformer2DModel of diffusers (SD3's has no mask); text and z are its captions.

    patch: side of the patches that pixels are folded into; layers: transformer blocks; heads: of the
    attention; head_dim: width of a head; z_tokens: tokens that z is spread over.
    """
    from diffusers import PixArtTransformer2DModel

    _check_sides(image_size, patch, 1)
    width = heads * head_dim
    context = TokenContext(token_dim, z_dim=z_dim, count=z_tokens, dim=width)
    model: Any = PixArtTransformer2DModel(
        sample_size=image_size,
        in_channels=channels,
        out_channels=channels,
        patch_size=patch,
        num_layers=layers,
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        cross_attention_dim=width,
        caption_channels=context.dim,
        use_additional_conditions=False,
    )
    return TextTransformer(model, channels, image_size, context=context, token_dim=token_dim, z_dim=z_dim)


def dit_label(
    channels: int,
    image_size: int,
    *,
    classes: Count,
    patch: Count = 2,
    layers: Count = 6,
    heads: Count = 4,
    head_dim: Count = 48,
) -> LabelTransformer:
    """The DiTTransformer2DModel of diffusers; label `classes` is the null label. It refuses text; no z.

    classes: labels 0 to classes - 1; patch: side of the patches that pixels are folded into; layers:
    transformer blocks; heads: of the attention; head_dim: width of a head.
    """
    from diffusers import DiTTransformer2DModel

    _check_sides(image_size, patch, 1)
    model: Any = DiTTransformer2DModel(
        sample_size=image_size,
        in_channels=channels,
        out_channels=channels,
        patch_size=patch,
        num_layers=layers,
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        num_embeds_ada_norm=classes,
    )
    return LabelTransformer(model, channels, image_size, classes=classes)
