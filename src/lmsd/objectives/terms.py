"""The terms that objectives are sums of. All of them return one number per sample, [B].

    relativistic    D: softplus(f − r)               G: softplus(r − f)     Jolicoeur-Martineau 2019
    nonsaturating   D: softplus(−r) + softplus(f)    G: softplus(−f)        Goodfellow et al. 2014
    hinge           D: (1 − r)₊ + (1 + f)₊           G: −f                  Lim and Ye 2017

with r = D(real), f = D(fake) at the same (x_t, t, c). The optimal relativistic D is
log q(x_s|x_t,c) − log p_G(x_s|x_t,c) + f(x_t,t,c) with f free: its logits compare only within a pair.

    energy    ‖x̂ − x₀‖/√D − ½ ‖x̂ − x̂'‖/√D             strictly proper (Gneiting and Raftery 2007): minimal
                                                         on average for x̂, x̂' ~ q(x₀|x_t), while ‖x̂ − x₀‖² is
                                                         minimal at the mean of that law, which is a blur
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from lmsd.errors import UserError

Adversary: TypeAlias = Literal["relativistic", "nonsaturating", "hinge"]


def per_sample(value: Tensor) -> Tensor:
    """Mean over all but the first dimension, [B, ...] → [B]."""
    return value.flatten(1).mean(1)


def discriminator_loss(kind: Adversary, real: Tensor, fake: Tensor) -> Tensor:
    """What D minimizes, from logits [B, heads]; mean over heads, [B]."""
    match kind:
        case "relativistic":
            return per_sample(F.softplus(fake - real))
        case "nonsaturating":
            return per_sample(F.softplus(-real) + F.softplus(fake))
        case "hinge":
            return per_sample(F.relu(1.0 - real) + F.relu(1.0 + fake))


def generator_loss(kind: Adversary, real: Tensor, fake: Tensor) -> Tensor:
    """What G minimizes against D, from logits [B, heads], [B]; only the relativistic loss uses `real`."""
    match kind:
        case "relativistic":
            return per_sample(F.softplus(real - fake))
        case "nonsaturating":
            return per_sample(F.softplus(-fake))
        case "hinge":
            return per_sample(-fake)


def sign_right(kind: Adversary, real: Tensor, fake: Tensor) -> Tensor:
    """Share of D's verdicts that are right, [B]: r > f in the relativistic loss, else r > 0 and f < 0."""
    if kind == "relativistic":
        return per_sample((real > fake).float())
    return per_sample(0.5 * ((real > 0).float() + (fake < 0).float()))


def center(real: Tensor, fake: Tensor) -> Tensor:
    """(r + f)² of each sample, [B]: holds the gauge that a relativistic loss leaves free, not r − f."""
    return per_sample((real + fake).square())


def difference_penalty(moved: Tensor, logits: Tensor, sigma: float) -> Tensor:
    """R_σ = ((D(x + σn) − D(x))/σ)² from both logits [B, heads], [B]; its mean over n is ‖∇D‖² + O(σ²)."""
    return per_sample(((moved - logits) / sigma).square())


def exact_penalty(critic: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Exact R(x) = ‖∇_x D‖² [B], the mean over heads, and the logits [B, heads] at x.

    Needs double backward through `critic`, which compiled nets and fused attention lack. Works in float32
    whatever autocast says: half precision loses the second derivatives.
    """
    x = x.detach().requires_grad_()
    with torch.autocast(x.device.type, enabled=False):
        logits = critic(x)
        squares = [
            torch.autograd.grad(head.sum(), x, create_graph=True)[0].square().flatten(1).sum(1)
            for head in logits.unbind(1)
        ]
        return torch.stack(squares).mean(0), logits


def distance(x: Tensor, y: Tensor) -> Tensor:
    """‖x − y‖/√D for each sample, [B]; its gradient at x = y is 0."""
    difference = (x - y).flatten(1)
    length: Tensor = torch.linalg.vector_norm(difference, dim=1)
    return length / math.sqrt(difference.shape[1])


def diversity(first: Tensor, second: Tensor) -> Tensor:
    """‖x̂ − x̂'‖/‖x̂‖ of two draws, [B]: how much the latent noise decides."""
    return distance(first, second) / distance(first, torch.zeros_like(first))


def energy_score(first: Tensor, second: Tensor, x_0: Tensor) -> Tensor:
    """½(‖x̂ − x₀‖ + ‖x̂' − x₀‖ − ‖x̂ − x̂'‖)/√D, [B]: the energy score (β = 1) from two draws x̂, x̂'."""
    return 0.5 * (distance(first, x_0) + distance(second, x_0) - distance(first, second))


class Annealed:
    """A number that goes from `start` to `end` with progress u in [0, 1]: end + (start − end)(1 + cos πu)/2.

    value: one number, for a constant, or a pair (start, end). Raises UserError for anything else.
    """

    def __init__(self, value: float | Sequence[float]) -> None:
        pair = tuple(value) if isinstance(value, Sequence) else (value, value)
        if len(pair) != 2:
            raise UserError(f"expected one number or a pair (start, end), got {value!r}")
        self.start, self.end = (float(number) for number in pair)

    def __str__(self) -> str:
        return f"{self.start:g}" if self.start == self.end else f"[{self.start:g}, {self.end:g}]"

    @property
    def least(self) -> float:
        """The smaller of the two."""
        return min(self.start, self.end)

    def __call__(self, progress: float) -> float:
        """The value at `progress`, which is clipped to [0, 1]."""
        angle = math.pi * min(max(progress, 0.0), 1.0)
        return self.end + (self.start - self.end) * 0.5 * (1.0 + math.cos(angle))
