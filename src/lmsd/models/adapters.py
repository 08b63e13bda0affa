"""Adapters: nets of diffusers and our own behind one call.

    f(x [B,C,H,W], τ [B], cond, z [B,z_dim] | None) → like x

Text and z enter as cross-attention tokens where the net has any, else pooled, added to the time embedding.
Every net of diffusers starts at output 0, as ours do: its last layer is zero. `backbones` builds them.
"""

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmsd.errors import Count, Number, UserError
from lmsd.nets.mlp import ResidualMLP
from lmsd.types import Cond


class Backbone(nn.Module):
    """Base of the adapters: what a generator and a trunk discriminator know of a net.

    token_dim, pooled_dim, z_dim: widths of what it takes, 0 for what it does not take. taps: names of the
    submodules whose outputs serve as features, first to last.
    """

    def __init__(
        self, channels: int, image_size: int, *, token_dim: int = 0, pooled_dim: int = 0, z_dim: int = 0
    ) -> None:
        super().__init__()
        self.channels = channels
        self.image_size = image_size
        self.token_dim = token_dim
        self.pooled_dim = pooled_dim
        self.z_dim = z_dim
        self.taps: tuple[str, ...] = ()

    def forward(self, x: Tensor, time: Tensor, cond: Cond, z: Tensor | None = None) -> Tensor:
        """What the net predicts."""
        raise NotImplementedError

    def enable_gradient_checkpointing(self) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations."""
        raise NotImplementedError


class MLPBackbone(Backbone):
    """The article's MLP, residual and modulated by pooled condition and z, for images up to about 16x16.

    width: of the residual stream; depth: blocks of two layers; hidden: inner width over width; time_dim:
    width of the modulating vector.
    """

    def __init__(
        self,
        channels: int,
        image_size: int,
        *,
        width: Count = 384,
        depth: Count = 4,
        hidden: Annotated[float, Number(0.01)] = 1.0,
        time_dim: Count = 128,
        pooled_dim: int = 0,
        z_dim: int = 0,
    ) -> None:
        super().__init__(channels, image_size, pooled_dim=pooled_dim, z_dim=z_dim)
        self.model = ResidualMLP(
            (channels, image_size, image_size),
            width,
            depth=depth,
            hidden=hidden,
            time_dim=time_dim,
            cond_dim=pooled_dim,
            z_dim=z_dim,
        )
        self.taps = tuple(f"model.blocks.{index}" for index in range(depth))

    def forward(self, x: Tensor, time: Tensor, cond: Cond, z: Tensor | None = None) -> Tensor:
        """What the MLP predicts."""
        return self.model(x, time, _pooled(self.pooled_dim, cond), z)  # type: ignore[no-any-return]

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the blocks."""
        self.model.gradient_checkpointing = True


class TokenContext(nn.Module):
    """[text; A z] with its mask: what cross-attention reads, [B,L+count,dim] and [B,L+count].

    token_dim: width of the text tokens, and of all; 0 for a net without text, which gets one learned token in
    their place. count: tokens that z is spread over.
    """

    def __init__(self, token_dim: int, *, z_dim: int, count: int, dim: int) -> None:
        super().__init__()
        self.dim = token_dim or dim
        self.none = None if token_dim else nn.Parameter(torch.randn(1, self.dim))
        self.z = nn.Linear(z_dim, count * self.dim) if z_dim else None

    def forward(self, cond: Cond, z: Tensor | None, size: int) -> tuple[Tensor, Tensor | None]:
        """Tokens and mask (None: all are real) for `size` samples."""
        if self.none is not None:
            tokens, mask = self.none.expand(size, 1, self.dim), None
        elif cond.tokens is None:
            raise UserError("net: it reads text tokens and got none; use a text conditioner, or token_dim=0")
        else:
            tokens, mask = cond.tokens, cond.mask
        if self.z is not None and z is not None:
            extra = self.z(z.to(self.z.weight.dtype)).unflatten(1, (-1, self.dim))
            tokens = torch.cat([tokens, extra.to(tokens.dtype)], dim=1)
            mask = None if mask is None else F.pad(mask, (0, extra.shape[1]), value=True)
        return tokens, mask


class DiffusersBackbone(Backbone):
    """Base of the adapters around diffusers models; `model` is the plain diffusers object."""

    def __init__(
        self,
        model: nn.Module,
        channels: int,
        image_size: int,
        *,
        last: str,
        patch: int = 1,
        token_dim: int = 0,
        pooled_dim: int = 0,
        z_dim: int = 0,
    ) -> None:
        super().__init__(channels, image_size, token_dim=token_dim, pooled_dim=pooled_dim, z_dim=z_dim)
        self.model = model
        self.patch = patch
        for parameter in model.get_submodule(last).parameters():
            nn.init.zeros_(parameter)

    def fold(self, x: Tensor) -> Tensor:
        """[B,C,H,W] → [B,C·p²,H/p,W/p]."""
        return F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x

    def unfold(self, x: Tensor) -> Tensor:
        """The reverse of `fold`."""
        return F.pixel_shuffle(x, self.patch) if self.patch > 1 else x

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the model's blocks."""
        self.model.enable_gradient_checkpointing()  # type: ignore[operator]


def _children(stack: str, model: nn.Module) -> tuple[str, ...]:
    """Names of the modules of a list in `model`, as seen from its adapter."""
    return tuple(f"model.{stack}.{name}" for name, _ in model.get_submodule(stack).named_children())


def _pooled(dim: int, cond: Cond) -> Tensor | None:
    """cond.pooled for a net that takes one, None for a net that does not."""
    if dim and cond.pooled is None:
        raise UserError(
            f"net: it takes a pooled condition of width {dim} and got none; use a conditioner, or 0"
        )
    return cond.pooled if dim else None


class TextUNet(DiffusersBackbone):
    """UNet2DConditionModel over text and z tokens, and the pooled condition in the time embedding."""

    def __init__(
        self,
        model: nn.Module,
        channels: int,
        image_size: int,
        *,
        context: TokenContext,
        patch: int,
        token_dim: int,
        pooled_dim: int,
        z_dim: int,
    ) -> None:
        super().__init__(
            model,
            channels,
            image_size,
            last="conv_out",
            patch=patch,
            token_dim=token_dim,
            pooled_dim=pooled_dim,
            z_dim=z_dim,
        )
        self.context = context
        self.taps = (*_children("down_blocks", model), "model.mid_block")

    def forward(self, x: Tensor, time: Tensor, cond: Cond, z: Tensor | None = None) -> Tensor:
        """What the U-Net predicts."""
        tokens, mask = self.context(cond, z, len(x))
        pooled = _pooled(self.pooled_dim, cond)
        (out,) = self.model(
            self.fold(x),
            time,
            tokens,
            class_labels=pooled,
            encoder_attention_mask=mask,
            return_dict=False,
        )
        return self.unfold(out)


class PooledUNet(DiffusersBackbone):
    """UNet2DModel with MLP([pooled, z]) in the place of its class embedding."""

    def __init__(
        self,
        model: nn.Module,
        channels: int,
        image_size: int,
        *,
        patch: int,
        pooled_dim: int,
        z_dim: int,
        time_dim: int,
    ) -> None:
        super().__init__(
            model, channels, image_size, last="conv_out", patch=patch, pooled_dim=pooled_dim, z_dim=z_dim
        )
        inputs = pooled_dim + z_dim
        self.embed = (
            nn.Sequential(nn.Linear(inputs, time_dim), nn.SiLU(), nn.Linear(time_dim, time_dim))
            if inputs
            else None
        )
        self.taps = (*_children("down_blocks", model), "model.mid_block")

    def forward(self, x: Tensor, time: Tensor, cond: Cond, z: Tensor | None = None) -> Tensor:
        """What the U-Net predicts."""
        vector = None
        if self.embed is not None:
            parts = (_pooled(self.pooled_dim, cond), z if self.z_dim else None)
            vector = self.embed(torch.cat([part.to(x.dtype) for part in parts if part is not None], dim=1))
        return self.unfold(self.model(self.fold(x), time, vector, return_dict=False)[0])


class TextTransformer(DiffusersBackbone):
    """PixArtTransformer2DModel over text and z tokens."""

    def __init__(
        self,
        model: nn.Module,
        channels: int,
        image_size: int,
        *,
        context: TokenContext,
        token_dim: int,
        z_dim: int,
    ) -> None:
        super().__init__(model, channels, image_size, last="proj_out", token_dim=token_dim, z_dim=z_dim)
        self.context = context
        self.taps = _children("transformer_blocks", model)

    def forward(self, x: Tensor, time: Tensor, cond: Cond, z: Tensor | None = None) -> Tensor:
        """What the transformer predicts."""
        tokens, mask = self.context(cond, z, len(x))
        (out,) = self.model(x, tokens, timestep=time, encoder_attention_mask=mask, return_dict=False)
        return out  # type: ignore[no-any-return]


class LabelTransformer(DiffusersBackbone):
    """DiTTransformer2DModel: class labels and nothing else."""

    def __init__(self, model: nn.Module, channels: int, image_size: int, *, classes: int) -> None:
        super().__init__(model, channels, image_size, last="proj_out_2")
        self.classes = classes
        self.taps = _children("transformer_blocks", model)
        for name, module in model.named_modules():
            if name.endswith("class_embedder"):
                # Its own label dropout draws from the global state; ours is the null label `classes`.
                module.dropout_prob = 0.0  # type: ignore[assignment]

    def forward(self, x: Tensor, time: Tensor, cond: Cond, z: Tensor | None = None) -> Tensor:
        """What the transformer predicts."""
        if cond.tokens is not None:
            raise UserError(
                "net: dit_label takes class labels only and cannot read text; use transformer_text"
            )
        if cond.label is None:
            raise UserError("net: dit_label takes class labels and got none; use a LabelConditioner")
        return self.model(x, time, cond.label, return_dict=False)[0]  # type: ignore[no-any-return]
