"""The discriminator: which x_s is real, given x_t, the times and the text?

    h = trunk([x_s, x_t]/√(α² + σ²) at their times; s, t, c)                     transition pairing, DDGAN's
    h = trunk(x_s/√(α_s² + σ_s²); s, c)                                          marginal pairing, UFOGen's
    h = a tap of a copied generator's net at c_in x_s                            marginal; ADD, LADD
    logits_k = w_k·h + ⟨A_k h, B c⟩/√d + b_k                                     Miyato and Koyama 2018

c is the pooled condition. Inputs are scaled to unit size, which changes nothing for variance-preserving
processes. The last layers are float32: a difference of 10⁻² between logits drowns in the rounding of bfloat16
logits around 10.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lmsd.errors import Count, UserError
from lmsd.models.frozen import freeze, twin
from lmsd.models.generator import Generator, edm_coefficients
from lmsd.models.taps import Tap, tap_channels, tap_names, tapped, with_taps
from lmsd.nets.embed import TimeEmbedding
from lmsd.nets.spectral import normalize
from lmsd.process.gaussian import Process
from lmsd.types import Cond, at_least_float32


class ProjectionHead(nn.Module):
    """(h [B,features], c [B,cond_dim]) → logits [B,heads] = w·h + b + ⟨A h, B c⟩/√d, at least float32.

    projection: d; cond_dim: 0 leaves the product out.
    """

    def __init__(self, features: int, *, cond_dim: int = 0, heads: int = 1, projection: int = 64) -> None:
        super().__init__()
        self.heads = heads
        self.linear = nn.Linear(features, heads)
        self.of_features = nn.Linear(features, heads * projection, bias=False) if cond_dim else None
        self.of_cond = nn.Linear(cond_dim, projection) if cond_dim else None

    def forward(self, h: Tensor, pooled: Tensor | None = None) -> Tensor:
        """Judge features."""
        with torch.autocast(h.device.type, enabled=False):
            h = at_least_float32(h)
            logits: Tensor = self.linear(h)
            if self.of_features is None or self.of_cond is None:
                return logits
            if pooled is None:
                raise UserError("discriminator: it was built with a condition (cond_dim > 0) and got none")
            c = self.of_cond(at_least_float32(pooled))
            product = torch.einsum("bkd,bd->bk", self.of_features(h).unflatten(1, (self.heads, -1)), c)
            return logits + product / math.sqrt(c.shape[1])


def double_backward_obstacle(module: nn.Module) -> str | None:
    """Why gradients of gradients cannot pass through `module`; None if they can."""
    for name, child in module.named_modules():
        where = name or type(child).__name__
        if child._compiled_call_impl is not None or type(child).__name__ == "OptimizedModule":
            return f"{where} is compiled, and compiled code has no double backward"
        if hasattr(child, "processor") or isinstance(child, nn.MultiheadAttention):
            return f"{where} is fused attention, which has no double backward"
    return None


class _Judge(nn.Module):
    """Base: a discriminator of one pairing, which it checks; smooth: its logits change slowly in time."""

    marginal: bool
    smooth: bool = False

    def _check_pairing(self, x_t: Tensor | None) -> None:
        if (x_t is None) != self.marginal:
            built, got = ("marginal", "x_t") if self.marginal else ("transition", "no x_t")
            raise UserError(
                f"discriminator: it was built for {built} pairing and got {got}; set the same pairing in both"
            )


class Discriminator(_Judge):
    """One of our own trunks (`nets.MLPCritic`, `nets.ConvCritic`) with time, text and a projection head.

    trunk: (x [B,2C,H,W] or, marginal, [B,C,H,W], time [B], vec [B,trunk.cond_dim]) → [B,features].
    cond_dim: width of the pooled condition, 0 for none; features: width of what is judged, by default the
    trunk's; heads: logits per sample; marginal: without x_t; smooth: it sees time as a share of all time, and
    its trunk has no kinks, so that differences of logits along a path are derivatives; spectral: the trunk's
    layers have a largest singular value of 1 (`nets.spectral`).
    """

    def __init__(
        self,
        trunk: nn.Module,
        *,
        process: Process,
        cond_dim: int,
        features: Count | None = None,
        heads: Count = 1,
        marginal: bool = False,
        smooth: bool = False,
        spectral: bool = False,
    ) -> None:
        super().__init__()
        self.smooth = smooth
        if smooth:
            trunk.smooth = True  # type: ignore[assignment]
        if spectral:
            normalize(trunk)
        self.trunk, self.process, self.marginal = trunk, process, marginal
        self.width = width = int(trunk.cond_dim)  # type: ignore[arg-type]
        if not width:
            raise UserError("discriminator: its trunk has cond_dim=0 and would see neither t nor text")
        self.embed_t = None if marginal else TimeEmbedding(width)
        self.embed_cond = nn.Linear(cond_dim, width) if cond_dim else None
        self.head = ProjectionHead(
            int(trunk.features) if features is None else features,  # type: ignore[arg-type]
            cond_dim=cond_dim,
            heads=heads,
        )

    def forward(self, x_s: Tensor, x_t: Tensor | None, s: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Logits [B,heads], float32; high for real.

        x_s, x_t: [B,C,H,W], x_t None in marginal pairing; s, t: [B], the schedule's times, s the cleaner.
        """
        self._check_pairing(x_t)
        model_time = self._share if self.smooth else self.process.schedule.model_time
        x, vec = self._unit(x_s, s), self._text(x_s, cond)
        if x_t is not None and self.embed_t is not None:
            x = torch.cat([x, self._unit(x_t, t)], dim=1)
            vec = vec + self.embed_t(model_time(t))
        return self.head(self.trunk(x, model_time(s), vec), cond.pooled)  # type: ignore[no-any-return]

    def _share(self, t: Tensor) -> Tensor:
        """Of all time, [B] in [0, 1]: in sin and cos of it and of slower waves alone."""
        schedule = self.process.schedule
        return (t - schedule.t_clean) / (schedule.t_noise - schedule.t_clean)

    def _unit(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.process.alpha_sigma(t, x)
        return x * (alpha.square() + sigma.square()).rsqrt()

    def _text(self, x: Tensor, cond: Cond) -> Tensor:
        """The trunk's vector, without the times: B c, or zeros."""
        if self.embed_cond is None:
            return x.new_zeros(len(x), self.width)
        if cond.pooled is None:
            raise UserError("discriminator: it was built with a condition (cond_dim > 0) and got none")
        vec: Tensor = self.embed_cond(cond.pooled.to(self.embed_cond.weight.dtype))
        return vec


class AutoencoderDiscriminator(nn.Module):
    """An image-to-image net as the discriminator of `objectives.article`: what it restores badly is unlikely.

    trunk: x [B,C,H,W] → x̂ of the same shape; it sees the image alone, neither t nor text. Raises UserError
    for a game that needs logits, which shows by its pairing (`marginal`).
    """

    def __init__(self, trunk: nn.Module, *, marginal: bool | None = None) -> None:
        super().__init__()
        if marginal is not None:
            raise UserError(
                "discriminator=autoencoder gives images back and no logits: it is for objective=article; "
                "take discriminator=mlp or another"
            )
        self.trunk = trunk

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction x̂, at least float32."""
        return at_least_float32(self.trunk(x))


class TrunkDiscriminator(_Judge):
    """Heads on the features of a copy of a generator's net, which already knows images; marginal pairing.

    generator: its net is copied with its current weights and runs at (x_s, s, c) with z = 0; cond_dim: width
    of the pooled condition; width: of a tap's features; taps: submodules of the net whose outputs are judged,
    one logit each, by default the net's own list; frozen: the copy holds buffers and never learns; else it is
    trained too. Of a tuned generator the base is shared, and the copy's adapters are what is kept or trained.
    Raises UserError for a net without these taps.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        cond_dim: int,
        width: Count = 128,
        taps: Sequence[str] | None = None,
        frozen: bool = True,
    ) -> None:
        super().__init__()
        self.marginal, self.process, self.z_dim = True, generator.process, generator.z_dim
        self.net = twin(with_taps(generator.net))
        base = vars(self.net).get("is_frozen", False)  # shared, and no part of checkpoints
        self.names = tap_names(self.net, taps)
        self.sigma_data = generator.sigma_data if generator.precondition == "edm" else None
        if frozen:
            freeze(self.net, saved=not base)
        channels = tap_channels(self.net, self.names)
        self.taps = nn.ModuleList(Tap(c, width) for c in channels)
        self.heads = nn.ModuleList(ProjectionHead(width, cond_dim=cond_dim) for _ in channels)

    def forward(self, x_s: Tensor, x_t: Tensor | None, s: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Logits [B,heads], one per tap, float32; high for real. x_t is None; t is not used."""
        self._check_pairing(x_t)
        x = at_least_float32(x_s)
        if self.sigma_data is not None:
            x = edm_coefficients(self.process, self.sigma_data, x, s)[0] * x
        z = x.new_zeros(len(x), self.z_dim) if self.z_dim else None
        with tapped(self.net, self.names) as features:
            self.net(x, self.process.schedule.model_time(s), cond, z)
        logits = [
            head(tap(h), cond.pooled) for head, tap, h in zip(self.heads, self.taps, features, strict=True)
        ]
        return torch.cat(logits, dim=1)
