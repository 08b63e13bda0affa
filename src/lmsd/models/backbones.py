"""Backbones: nets of diffusers and our own behind one call.

    f(x [B,C,H,W], τ [B], cond, z [B,z_dim] | None) → like x

Text and z enter as cross-attention tokens where the net has any, else pooled, added to the time embedding.
With `patch` p the net works on [B, C·p², H/p, W/p] (pixel_unshuffle), which makes pixels affordable.
Every backbone starts at output 0: its last layer is zero.
"""

from torch import Tensor, nn

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
    """`nets.ResidualMLP` with the pooled condition and z in its modulation."""

    def __init__(
        self,
        channels: int,
        image_size: int,
        *,
        width: int,
        depth: int,
        hidden: float,
        time_dim: int,
        pooled_dim: int,
        z_dim: int,
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
        return self.model(x, time, cond.pooled, z)  # type: ignore[no-any-return]

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the blocks."""
        self.model.gradient_checkpointing = True


def mlp(
    channels: int,
    image_size: int,
    *,
    width: int = 384,
    depth: int = 4,
    hidden: float = 1.0,
    time_dim: int = 128,
    pooled_dim: int = 0,
    z_dim: int = 0,
) -> MLPBackbone:
    """The article's MLP, residual and modulated, for images up to about 16x16."""
    return MLPBackbone(
        channels,
        image_size,
        width=width,
        depth=depth,
        hidden=hidden,
        time_dim=time_dim,
        pooled_dim=pooled_dim,
        z_dim=z_dim,
    )
