"""MeanFlow: the average velocity of a flow, which one step integrates (Geng et al. 2025).

    u(x_t, r, t) = 1/(t − r) ∫_r^t v(x_τ, τ) dτ                        r ≤ t;  u(x, t, t) = v(x, t)
    u = v − (t − r) d/dt u,     d/dt u = ∂_x u · v + ∂_t u              differentiating (t − r) u  (eq. 6)
    L = E w ‖u_θ(x_t, r, t) − sg[v − (t − r) d/dt u_θ]‖²,   v = ε − x₀,   w = sg[1/(‖·‖² + c)^p]
    x̂₀ = x_t − t u(x_t, 0, t)                                           one step from any t

d/dt u is a Jacobian-vector product in forward mode, through attention's MATH kernel, the only one that has
it. With r = t it is flow matching; a share of the samples keeps that.

The net's second time r enters with the condition: F(r) = [cos ω_i r − 1, sin ω_i r], ω_i = i π/2, is added to
the pooled condition and to every token. F(0) = 0, so that the trained net, asked as any other, says
u(x_t, 0, t): samplers, averages and exports know of no second time. No weights are added: a net is trained
from scratch, or from a teacher, whose velocity is then what u begins with.
"""

import math
from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lmsd.errors import UserError
from lmsd.models.generator import Generator
from lmsd.objectives.base import (
    Facts,
    Objective,
    caption_drop,
    generator_of,
    latent,
    means,
    standard_normal,
)
from lmsd.objectives.rewarded import stream
from lmsd.process.times import Times
from lmsd.rng import Rng
from lmsd.types import Batch, Clock, Cond, Loss, Players, Turn

_SECOND = 13  # a stream of random numbers for the second time
_WAVES = 8
"""Pairs of F(r) at most; the fastest takes a sixteenth of the path for half a wave."""
_SMALLEST = 1e-3
"""The constant c of the weight."""


class MeanFlow(Objective):
    """Learn the average velocity of the flow; see the module for the formulas.

    times: law of both times, which are drawn apart and ordered; apart: share of samples with r < t, the
    others are flow matching; power: p of the weight, 0 for the plain square; caption_dropout: share of
    captions dropped. It is for one step: take steps=1.

    Logs: error ‖·‖²/D, apart (the same of samples with r < t). Raises UserError for values out of range, and
    for a generator that is no flow, does not predict its velocity, or has no condition to tell r by.
    """

    def __init__(
        self, times: Times, *, apart: float = 0.25, power: float = 1.0, caption_dropout: float = 0.1
    ) -> None:
        if not (0 <= apart <= 1 and 0 <= caption_dropout <= 1 and power >= 0):
            raise UserError(
                f"meanflow: apart={apart} and caption_dropout={caption_dropout} are shares from 0 to 1, and "
                f"power={power} must not be negative"
            )
        self.times, self.apart, self.power, self.caption_dropout = times, apart, power, caption_dropout

    def prepare(self, facts: Facts) -> None:
        """Refuse a generator that MeanFlow cannot train."""
        generator = generator_of(facts.players)
        if not generator.process.schedule.straight or generator.prediction != "velocity":
            raise UserError(
                "meanflow averages the velocity of a flow: take schedule=flow generator.prediction=velocity"
            )
        if not generator.net.pooled_dim and not generator.net.token_dim:
            raise UserError(
                "meanflow tells the net its second time by the condition, and this net takes none: take one "
                "that reads captions or labels, e.g. net=mlp, with a conditioner"
            )

    def turns(self, players: Players, batch: Batch, clock: Clock, rng: Rng) -> Iterator[Turn]:
        """One turn of the generator."""
        generator = generator_of(players)
        if generator.net._compiled_call_impl is not None:  # type: ignore[attr-defined]
            raise UserError(
                "meanflow differentiates the net forward, which compiled code cannot: compile=false"
            )
        yield Turn("generator", partial(self.loss, generator, batch, rng))

    def draw_times(self, generator: Generator, rng: Rng) -> tuple[Tensor, Tensor]:
        """(r, t), float32 [B] each, r ≤ t."""
        one, other = (self.times(each, generator.process) for each in (rng, stream(rng, _SECOND)))
        r, t = torch.minimum(one, other), torch.maximum(one, other)
        return torch.where(rng.uniform((), "apart") < self.apart, r, t), t

    def loss(self, generator: Generator, batch: Batch, rng: Rng) -> Loss:
        """The mean over the batch."""
        r, t = self.draw_times(generator, rng)
        eps = standard_normal(rng, batch.x, "eps")
        x_t, v = generator.process.noise(batch.x, t, eps), eps - batch.x
        cond = told(generator.condition(batch, caption_drop(rng, self.caption_dropout)), r)
        u, slope = velocity_and_slope(generator, x_t, t, v, cond, latent(generator, rng, batch.x))
        gap = (t - r).to(v.dtype).view(-1, *[1] * (v.ndim - 1))
        square = (u - (v - gap * slope).detach()).flatten(1).square().sum(1)
        weight = (square.detach() + _SMALLEST).pow(-self.power)
        error = square / v[0].numel()
        return Loss((weight * square).mean(), means(self._logs(error, r < t)))

    @staticmethod
    def _logs(error: Tensor, apart: Tensor) -> Mapping[str, Tensor]:
        share = apart.to(error.dtype)
        return {"error": error, "apart": error * share / share.mean().clamp(min=1 / len(share))}


def velocity_and_slope(
    generator: Generator, x_t: Tensor, t: Tensor, v: Tensor, cond: Cond, z: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(u, d/dt u) at (x_t, t) along (v, 1), both like x_t; u with a gradient for the weights."""

    def net(x: Tensor, time: Tensor) -> Tensor:
        native: Tensor = generator(x, time, cond, z, output="native")
        return native

    with sdpa_kernel(SDPBackend.MATH):
        found = torch.func.jvp(net, (x_t, t), (v, torch.ones_like(t)))
    return found[0], found[1].detach()


def told(cond: Cond, r: Tensor) -> Cond:
    """The condition with F(r) added to the pooled one and to every token; r [B] in [0, 1]."""

    def add(value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        pairs = min(_WAVES, value.shape[-1] // 2)
        angle = r[:, None].to(value.dtype) * torch.arange(1, pairs + 1, device=r.device) * (math.pi / 2)
        waves = torch.stack([angle.cos() - 1, angle.sin()], dim=-1).flatten(1)
        wide = torch.nn.functional.pad(waves, (0, value.shape[-1] - 2 * pairs)).to(value.dtype)
        return value + (wide[:, None] if value.ndim == 3 else wide)

    return Cond(
        tokens=None if cond.tokens is None else add(cond.tokens),
        mask=cond.mask,
        pooled=None if cond.pooled is None else add(cond.pooled),
        label=cond.label,
        image=cond.image,
    )
