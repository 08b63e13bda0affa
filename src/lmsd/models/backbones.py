"""Backbones: the generator's nets, diffusers' and our own, behind one call, in sizes that a laptop can train.

    f(x [B,C,H,W], τ [B], cond, z [B,z_dim] | None) → like x

    MLPBackbone        the article's residual MLP              pooled text, z      images up to about 16x16
    ConvUNet           our own, in `models.conv_unet`          pooled text, z
    UViT               our own, in `models.uvit`               text and z tokens, pooled text
    TextUNet           diffusers' UNet2DConditionModel         text and z tokens, pooled text
    PooledUNet         diffusers' UNet2DModel                  pooled text, z
    TextTransformer    diffusers' PixArtTransformer2DModel     text and z tokens
    LabelTransformer   diffusers' DiTTransformer2DModel        labels only

Text and z enter as cross-attention tokens if the net has any, else pooled, added to the time embedding. All
nets start at output 0: their last layer is zero. With `patch` p a U-Net works on [B, C·p², H/p, W/p]
(pixel_unshuffle), which makes pixels affordable; the transformers have patches of their own. `sizes` follow
from the data, the codec and the conditioner; a net's own attributes are 0 for what it does not take.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmsd.errors import Count, Number, UserError
from lmsd.nets.embed import TokenContext
from lmsd.nets.mlp import ResidualMLP
from lmsd.types import Cond, Sizes


class Backbone(nn.Module):
    """Base of the nets: what a generator and a trunk discriminator know about a net.

    sizes: of what it takes; taps: names of the submodules whose outputs serve as features, first to last.
    """

    def __init__(self, sizes: Sizes, taps: Iterable[str]) -> None:
        super().__init__()
        self.channels, self.image_size = sizes.channels, sizes.image_size
        self.token_dim, self.pooled_dim, self.z_dim = sizes.token_dim, sizes.pooled_dim, sizes.z_dim
        self.image_dim = sizes.image_dim
        self.taps = tuple(f"model.{tap}" for tap in taps)

    def beside(self, x: Tensor, cond: Cond) -> Tensor:
        """X [B,C,H,W], followed by the channels of the image that it sees, if it sees one."""
        if not self.image_dim:
            return x
        if cond.image is None:
            raise UserError("net: it sees an image beside x, and got none")
        return torch.cat([x, cond.image.to(x.dtype)], dim=1)

    def features(self, output: Any) -> Tensor:
        """What of a tap's output is judged: the first, where a block returns several."""
        found: Tensor = output if isinstance(output, Tensor) else output[0]
        return found


class MLPBackbone(Backbone):
    """The article's MLP, residual and modulated by the pooled condition and z, for images up to about 16x16.

    width: of the residual stream; depth: blocks of two layers; hidden: inner width over width; time_dim:
    width of the modulating vector.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        width: Count = 384,
        depth: Count = 4,
        hidden: Annotated[float, Number(0.01)] = 1.0,
        time_dim: Count = 128,
    ) -> None:
        super().__init__(replace(sizes, token_dim=0), (f"blocks.{index}" for index in range(depth)))
        self.model = ResidualMLP(
            (self.channels, self.image_size, self.image_size),
            width,
            depth=depth,
            hidden=hidden,
            time_dim=time_dim,
            cond_dim=self.pooled_dim,
            z_dim=self.z_dim,
            image_dim=self.image_dim,
        )

    def forward(self, x: Tensor, time: Tensor, cond: Cond, z: Tensor | None = None) -> Tensor:
        """What the MLP predicts."""
        return self.model(self.beside(x, cond), time, pooled_of(self.pooled_dim, cond), z)  # type: ignore[no-any-return]

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the blocks."""
        self.model.gradient_checkpointing = True


class DiffusersBackbone(Backbone):
    """Base of the adapters around diffusers models; `model` is the plain diffusers object.

    last: its output layer, which is set to zero; patch: side of the squares that are folded into channels.
    """

    def __init__(self, model: Any, sizes: Sizes, taps: Iterable[str], *, last: str, patch: int = 1) -> None:
        super().__init__(sizes, taps)
        self.model, self.patch = model, patch
        for parameter in model.get_submodule(last).parameters():
            nn.init.zeros_(parameter)
        if self.image_dim:
            first = model.conv_in if "conv_in" in dict(model.named_children()) else model.pos_embed.proj
            unseen(first, self.channels * patch**2)

    def fold(self, x: Tensor) -> Tensor:
        """[B,C,H,W] → [B,C·p²,H/p,W/p]."""
        return F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x

    def unfold(self, x: Tensor) -> Tensor:
        """The inverse of `fold`."""
        return F.pixel_shuffle(x, self.patch) if self.patch > 1 else x

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the model's blocks."""
        self.model.enable_gradient_checkpointing()


@torch.no_grad()
def unseen(layer: Any, channels: int) -> None:
    """Set the weights of a first layer to 0 for all inputs but the first so many channels, those of x."""
    layer.weight[:, channels:] = 0.0


def pooled_of(dim: int, cond: Cond) -> Tensor | None:
    """cond.pooled for a net that takes it, else None."""
    if dim and cond.pooled is None:
        raise UserError(
            f"net: it takes a pooled condition of width {dim} and got none; use a conditioner, or 0"
        )
    return cond.pooled if dim else None


def check_sides(image_size: int, patch: int, levels: int) -> None:
    """Refuse a side that patches and halvings do not divide."""
    if image_size % (patch * 2 ** (levels - 1)):
        raise UserError(
            f"net: side {image_size} does not divide by patch {patch} times 2^{levels - 1} "
            f"({levels} widths); take a smaller patch or fewer widths"
        )


def _flags(attention: Sequence[bool] | None, widths: Sequence[int]) -> Sequence[bool]:
    """Which levels attend; by default all but the first."""
    if attention is None:
        return [level > 0 or len(widths) == 1 for level in range(len(widths))]
    if len(attention) != len(widths):
        raise UserError(
            f"net: attention names {len(attention)} levels, widths {len(widths)}; make them equal"
        )
    return attention


def _levels(widths: Sequence[int]) -> list[str]:
    """The taps of a U-Net: its levels on the way down, and its middle."""
    return [*(f"down_blocks.{level}" for level in range(len(widths))), "mid_block"]


def _unet(
    attending: str,
    sizes: Sizes,
    widths: Sequence[int],
    *,
    blocks: int,
    patch: int,
    attention: Sequence[bool] | None,
) -> dict[str, Any]:
    """The arguments of both U-Nets of diffusers; attending: prefix of their blocks with attention."""
    if not widths:
        raise UserError("net: widths is empty; name the channels of each level, e.g. [64, 128]")
    check_sides(sizes.image_size, patch, len(widths))
    attends = _flags(attention, widths)
    return {
        "down_block_types": tuple(f"{attending if a else ''}DownBlock2D" for a in attends),
        "up_block_types": tuple(f"{attending if a else ''}UpBlock2D" for a in reversed(attends)),
        "sample_size": sizes.image_size // patch,
        "in_channels": (sizes.channels + sizes.image_dim) * patch * patch,
        "out_channels": sizes.channels * patch * patch,
        "block_out_channels": tuple(widths),
        "layers_per_block": blocks,
        "norm_num_groups": math.gcd(32, *widths),
        "resnet_time_scale_shift": "scale_shift",
    }


def _transformer(sizes: Sizes, *, patch: int, layers: int, heads: int, head_dim: int) -> dict[str, Any]:
    """The arguments of both transformers of diffusers."""
    check_sides(sizes.image_size, patch, 1)
    return {
        "sample_size": sizes.image_size,
        "in_channels": sizes.channels + sizes.image_dim,
        "out_channels": sizes.channels,
        "patch_size": patch,
        "num_layers": layers,
        "num_attention_heads": heads,
        "attention_head_dim": head_dim,
    }


class TextUNet(DiffusersBackbone):
    """The UNet2DConditionModel of diffusers; text and z are cross-attention tokens, pooled joins the time.

    widths: channels of each level, multiples of 16; blocks: residual blocks per level; attention: which
    levels attend, true or false for each, null for all but the first; heads: of the attention; patch: side of
    the patches that pixels are folded into; z_tokens: tokens that z is spread over.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        widths: Sequence[Count] = (64, 128),
        blocks: Count = 1,
        attention: Sequence[bool] | None = None,
        heads: Count = 4,
        patch: Count = 1,
        z_tokens: Count = 2,
    ) -> None:
        from diffusers import UNet2DConditionModel

        options = _unet("CrossAttn", sizes, widths, blocks=blocks, patch=patch, attention=attention)
        context = TokenContext(sizes.token_dim, z_dim=sizes.z_dim, count=z_tokens, dim=widths[0])
        model = UNet2DConditionModel(
            **options,
            attention_head_dim=heads,  # diffusers' name for the number of heads
            cross_attention_dim=context.dim,
            class_embed_type="simple_projection" if sizes.pooled_dim else None,
            projection_class_embeddings_input_dim=sizes.pooled_dim or None,
        )
        super().__init__(model, sizes, _levels(widths), last="conv_out", patch=patch)
        self.context = context

    def forward(self, x: Tensor, time: Tensor, cond: Cond, z: Tensor | None = None) -> Tensor:
        """What the U-Net predicts."""
        tokens, mask = self.context(cond, z, x.shape[0])
        pooled = pooled_of(self.pooled_dim, cond)
        (out,) = self.model(
            self.fold(self.beside(x, cond)),
            time,
            tokens,
            class_labels=pooled,
            encoder_attention_mask=mask,
            return_dict=False,
        )
        return self.unfold(out)


class PooledUNet(DiffusersBackbone):
    """The UNet2DModel of diffusers; MLP([pooled, z]) takes the place of its class embedding.

    widths: channels of each level, multiples of 16; blocks: residual blocks per level; attention: which
    levels attend, true or false for each, null for all but the first; head_dim: width of a head; patch: side
    of the patches that pixels are folded into.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        widths: Sequence[Count] = (64, 128),
        blocks: Count = 1,
        attention: Sequence[bool] | None = None,
        head_dim: Count = 32,
        patch: Count = 1,
    ) -> None:
        from diffusers import UNet2DModel

        for width, attends in zip(widths, _flags(attention, widths), strict=True):
            if attends and width < head_dim:
                raise UserError(
                    f"net: a level of width {width} attends in heads of {head_dim}: lower net.head_dim"
                )
        options = _unet("Attn", sizes, widths, blocks=blocks, patch=patch, attention=attention)
        inputs, time = sizes.pooled_dim + sizes.z_dim, 4 * widths[0]
        embedding = "identity" if inputs else None
        model = UNet2DModel(**options, attention_head_dim=head_dim, class_embed_type=embedding)
        super().__init__(model, replace(sizes, token_dim=0), _levels(widths), last="conv_out", patch=patch)
        self.embed = (
            nn.Sequential(nn.Linear(inputs, time), nn.SiLU(), nn.Linear(time, time)) if inputs else None
        )

    def forward(self, x: Tensor, time: Tensor, cond: Cond, z: Tensor | None = None) -> Tensor:
        """What the U-Net predicts."""
        vector = None
        if self.embed is not None:
            parts = (pooled_of(self.pooled_dim, cond), z if self.z_dim else None)
            vector = self.embed(torch.cat([part.to(x.dtype) for part in parts if part is not None], dim=1))
        return self.unfold(self.model(self.fold(self.beside(x, cond)), time, vector, return_dict=False)[0])


class TextTransformer(DiffusersBackbone):
    """The PixArtTransformer2DModel of diffusers (SD3's has no mask); text and z are its captions.

    patch: side of the patches that pixels are folded into; layers: transformer blocks; heads: of the
    attention; head_dim: width of a head; z_tokens: tokens that z is spread over.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        patch: Count = 2,
        layers: Count = 6,
        heads: Count = 4,
        head_dim: Count = 48,
        z_tokens: Count = 2,
    ) -> None:
        from diffusers import PixArtTransformer2DModel

        options = _transformer(sizes, patch=patch, layers=layers, heads=heads, head_dim=head_dim)
        width = heads * head_dim
        context = TokenContext(sizes.token_dim, z_dim=sizes.z_dim, count=z_tokens, dim=width)
        model = PixArtTransformer2DModel(
            **options,
            cross_attention_dim=width,
            caption_channels=context.dim,
            use_additional_conditions=False,
        )
        blocks = (f"transformer_blocks.{index}" for index in range(layers))
        super().__init__(model, replace(sizes, pooled_dim=0), blocks, last="proj_out")
        self.context = context

    def forward(self, x: Tensor, time: Tensor, cond: Cond, z: Tensor | None = None) -> Tensor:
        """What the transformer predicts."""
        tokens, mask = self.context(cond, z, x.shape[0])
        (out,) = self.model(
            self.beside(x, cond), tokens, timestep=time, encoder_attention_mask=mask, return_dict=False
        )
        return out  # type: ignore[no-any-return]


class LabelTransformer(DiffusersBackbone):
    """The DiTTransformer2DModel of diffusers; label `classes` is the null label. It takes neither text nor z.

    classes: labels 0 to classes - 1; patch: side of the patches that pixels are folded into; layers:
    transformer blocks; heads: of the attention; head_dim: width of a head.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        classes: Count,
        patch: Count = 2,
        layers: Count = 6,
        heads: Count = 4,
        head_dim: Count = 48,
    ) -> None:
        from diffusers import DiTTransformer2DModel

        options = _transformer(sizes, patch=patch, layers=layers, heads=heads, head_dim=head_dim)
        model: Any = DiTTransformer2DModel(**options, num_embeds_ada_norm=classes)
        blocks = (f"transformer_blocks.{index}" for index in range(layers))
        sizes = Sizes(sizes.channels, sizes.image_size, image_dim=sizes.image_dim)
        super().__init__(model, sizes, blocks, last="proj_out_2")
        self.classes = classes
        for name, module in model.named_modules():
            if name.endswith("class_embedder"):
                # Its own label dropout draws from the global state; ours is the null label `classes`.
                module.dropout_prob = 0.0

    def forward(self, x: Tensor, time: Tensor, cond: Cond, z: Tensor | None = None) -> Tensor:
        """What the transformer predicts."""
        if cond.tokens is not None:
            raise UserError(
                "net: dit_label takes class labels only and cannot read text; use transformer_text"
            )
        if cond.label is None:
            raise UserError("net: dit_label takes class labels and got none; use a LabelConditioner")
        out: Tensor = self.model(self.beside(x, cond), time, cond.label, return_dict=False)[0]
        return out
