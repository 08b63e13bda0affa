"""The generator: a net made a denoiser of a process.

    x_t = α x₀ + σ ε                                     α, σ at t, from the process
    none    x̂₀ = process.to_x0(f(x_t, τ, c, z), prediction, x_t, t)
    edm     x̂₀ = c_skip x_t + c_out F(c_in x_t, τ, c, z)
            n² = σ² + α² σ_d²,   c_in = 1/n,   c_skip = α σ_d²/n²,   c_out = σ σ_d/n

τ is the schedule's model time. The second is Karras et al. 2022, eq. 7 and table 1, written for any process:
at α = 1 it is theirs, at σ = 0 it returns x_t/α, at α = 0 it is σ_d F; neither end divides by 0. F's target,
(x₀ − c_skip x_t)/c_out = (σ x₀ − α σ_d² ε)/(σ_d n), has unit variance for data of standard deviation σ_d.

x₀ is what the generator's codec makes of an image: the image itself, or a latent (`models.codec`).
"""

import math
from dataclasses import replace
from typing import Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from lmsd.errors import Amount, UserError, one_of
from lmsd.models.codec import Codec, Identity, Shape, bounded
from lmsd.models.conditioner import Conditioner, NullConditioner
from lmsd.models.frozen import weights_of
from lmsd.process.gaussian import Process
from lmsd.rng import Rng
from lmsd.types import Batch, Cond, Net, Prediction, Seeing, at_least_float32

Precondition: TypeAlias = Literal["none", "edm"]
Sees: TypeAlias = Literal["nothing", "source", "masked"]
"""What a generator sees beside x_t: nothing; the image to be edited; a mask and what it leaves of x."""
_LARGEST_INPUT = 10.0


def edm_coefficients(process: Process, sigma_data: float, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
    """(c_in, α, σ) at t [B], broadcastable to x [B,C,H,W]; c_skip and c_out follow from them."""
    alpha, sigma = process.alpha_sigma(t, x)
    return (sigma.square() + (alpha * sigma_data).square()).rsqrt(), alpha, sigma


class Generator(nn.Module):
    """A net f over a process: the only way from x_t to x̂₀, and differentiable.

    net: f(x [B,C,H,W], τ [B], cond, z [B,z_dim]|None) → like x; see `models.backbones`. prediction: what f
    predicts without preconditioning; codec: between images and x, None: x is the image; z_dim: width of the
    latent noise, 0 for none; precondition: none or edm; sigma_data: σ_d; sees: what image it has beside x.

    Raises UserError if the parts do not fit: a net with another z_dim or condition width, or a process whose
    inputs (α² + σ² ≫ 1) need precondition=edm.
    """

    net: Net

    def __init__(
        self,
        net: Net,
        process: Process,
        *,
        prediction: Prediction = "v",
        conditioner: Conditioner | None = None,
        codec: Codec | None = None,
        z_dim: Amount = 0,
        precondition: Precondition = "none",
        sigma_data: float = 0.5,
        sees: Sees = "nothing",
    ) -> None:
        super().__init__()
        one_of("generator", "sees", sees, Sees)
        self.net = net
        self.sees: Sees = sees
        self.process = process
        self.prediction: Prediction = prediction
        self.conditioner = conditioner if conditioner is not None else NullConditioner()
        self.codec = codec if codec is not None else Identity()
        self.z_dim = z_dim
        self.precondition: Precondition = precondition
        self.sigma_data = sigma_data
        if not sigma_data > 0:
            raise UserError(f"generator: sigma_data={sigma_data} must be above 0: it is a standard deviation")
        self._check_parts()
        self._check_sight()
        self._check_process()

    def _check_parts(self) -> None:
        net = self.net
        if not isinstance(net, Net):
            named = ", ".join(Net.__annotations__)
            raise UserError(f"generator: {type(net).__name__} does not say {named}, which a net must")
        for name, taken, given, source in (
            ("z_dim", net.z_dim, self.z_dim, "the generator"),
            ("token_dim", net.token_dim, self.conditioner.token_dim, "the conditioner"),
            ("pooled_dim", net.pooled_dim, self.conditioner.pooled_dim, "the conditioner"),
        ):
            if taken != given and not (name != "z_dim" and taken == 0):
                raise UserError(
                    f"generator: the net takes {name}={taken}, {source} gives {given}; make them equal"
                )

    def _check_sight(self) -> None:
        wanted = {"nothing": 0, "source": self.net.channels, "masked": self.net.channels + 1}[self.sees]
        found = self.net.image_dim if isinstance(self.net, Seeing) else 0
        if found != wanted:
            raise UserError(
                f"generator: sees={self.sees} needs a net that takes an image of {wanted} channels, and "
                f"{type(self.net).__name__} takes {found}"
            )

    def _check_process(self) -> None:
        if self.precondition == "edm":
            return
        if self.sigma_data != 0.5:
            raise UserError(
                "generator.sigma_data is for generator.precondition=edm: take both, or leave it out"
            )
        self.process.check(self.prediction)
        schedule = self.process.schedule
        alpha, sigma = schedule(torch.tensor([float(schedule.t_noise)]))
        scale = math.hypot(alpha.item(), sigma.item())
        if scale > _LARGEST_INPUT:
            raise UserError(f"generator: the net would see inputs of scale {scale:.0f}; set precondition=edm")

    @property
    def device(self) -> torch.device:
        """Where its net is; frozen or not."""
        return next(weights_of(cast(nn.Module, self.net)))[1].device

    @property
    def shape(self) -> Shape:
        """(C, H, W) of what is diffused."""
        return self.net.channels, self.net.image_size, self.net.image_size

    @property
    def image_shape(self) -> Shape:
        """(C, H, W) of the images."""
        return self.codec.image_shape_of(self.shape)

    @property
    def bound(self) -> float | None:
        """Bound on every |x₀| of what is diffused; None: unknown."""
        return self.codec.bound

    @torch.no_grad()
    def encode(self, batch: Batch, rng: Rng | None = None) -> Batch:
        """A batch of images as the process diffuses it, its further pictures (4-D), if any, included.

        rng: draws the latents of a codec that gives a distribution; None: its mean. What a cache has encoded
        already is scaled and drawn here, too, so that it is the same.
        """
        extra = {name: self._encoded(x) if x.ndim == 4 else x for name, x in batch.extra.items()}
        with torch.autocast(batch.x.device.type, enabled=False):
            z, std = (batch.x, batch.spread) if batch.encoded else self.codec.raw(batch.x)
            if std is not None and rng is not None:
                z = z + std * rng.normal(z.shape[1:], "posterior").to(z.dtype)
            x = self.codec.scaled(z).to(batch.x.dtype)
        return replace(batch, x=x, extra=extra, encoded=False, spread=None)

    def _encoded(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self.codec.encode(x)

    def decode(self, x: Tensor) -> Tensor:
        """Images in [-1,1] from what was diffused: clamped, with a straight-through gradient."""
        with torch.autocast(x.device.type, enabled=False):
            return bounded(self.codec.decode(x), 1.0)

    def condition(self, batch: Batch, drop: Tensor | None = None, blind: Tensor | None = None) -> Cond:
        """The condition of an encoded batch; samples with `drop` [B] True get the null condition.

        A generator that sees an image is shown that of the batch, or zeros where `blind` [B] is True.
        """
        cond: Cond = self.conditioner(batch, drop)
        image = self._seen(batch)
        if image is None:
            return cond
        if blind is not None:
            image = torch.where(blind[:, None, None, None], torch.zeros_like(image), image)
        return replace(cond, image=image)

    def _seen(self, batch: Batch) -> Tensor | None:
        """The source, or the mask and what it leaves of x; of a batch without a mask nothing is left."""
        if self.sees == "nothing":
            return None
        if self.sees == "source":
            if "source" not in batch.extra:
                raise UserError(
                    "this generator edits images (objective=edit) and is shown none: lmsd edit image=FILE, "
                    "or data with sources, data.images=[source]"
                )
            return batch.extra["source"]
        mask = batch.extra.get("mask", torch.ones_like(batch.x[:, :1]))
        return torch.cat([mask, batch.x * (1.0 - mask)], dim=1)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Cond,
        z: Tensor | None = None,
        *,
        output: Literal["x0", "native"] = "x0",
    ) -> Tensor:
        """x̂₀ [B,C,H,W], or what the net predicts with output="native"; at least float32.

        x_t: [B,C,H,W]; t: [B] in the schedule's time; z: [B,z_dim], N(0, I).
        """
        if self.z_dim and z is None:
            raise UserError(f"generator: it takes a latent z [B,{self.z_dim}] and got none; draw z ~ N(0, I)")
        x_t = at_least_float32(x_t)
        x = x_t
        if self.precondition == "edm":
            x = edm_coefficients(self.process, self.sigma_data, x_t, t)[0] * x_t
        native = at_least_float32(self.net(x, self.process.schedule.model_time(t), cond, z))
        return native if output == "native" else self.to_x0(native, x_t, t)

    def to_x0(self, native: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """x̂₀ from what the net predicted at (x_t, t), in float32 or better whatever autocast says."""
        with torch.autocast(x_t.device.type, enabled=False):
            native, x_t = at_least_float32(native), at_least_float32(x_t)
            if self.precondition == "none":
                return self.process.to_x0(native, self.prediction, x_t, t)
            c_in, alpha, sigma = edm_coefficients(self.process, self.sigma_data, x_t, t)
            c_skip = alpha * (self.sigma_data * c_in) ** 2
            return c_skip * x_t + sigma * self.sigma_data * c_in * native

    def target(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the net should predict at x_t = α x₀ + σ ε: the target of output="native"."""
        if self.precondition == "none":
            return self.process.target(self.prediction, x_0, eps, t)
        c_in, alpha, sigma = edm_coefficients(self.process, self.sigma_data, x_0, t)
        return (sigma / self.sigma_data * x_0 - alpha * self.sigma_data * eps) * c_in
