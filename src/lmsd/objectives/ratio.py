"""What a discriminator's logit D = log p_data/p_G is good for besides the game: weights, and their unit.

    f-distill (Xu et al. 2025)     h(ρ) = f''(ρ) ρ²,  ρ = e^D: what multiplies the score difference s_G − s in
                                   the gradient of D_f(p_data ‖ p_G) = E_{p_G} f(ρ)

    rkl 1      kl ρ      js ρ/(1+ρ)      soft_rkl 1/(1+ρ)      hellinger √ρ      neyman 1/ρ      jeffreys 1+ρ

Weights are divided by their mean, of the update before: of the same update it would couple the samples of a
batch, and K micro-batches would no longer give the gradient of the whole. Logits are flattened by whatever
regularizes D; a temperature, fitted on held-out pairs, restores their unit (`rewards.discriminator`).
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from lmsd.errors import UserError
from lmsd.ranks import gather

Divergence: TypeAlias = Literal["rkl", "kl", "js", "soft_rkl", "hellinger", "neyman", "jeffreys"]

WEIGHTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "rkl": torch.ones_like,
    "kl": torch.exp,
    "js": torch.sigmoid,
    "soft_rkl": lambda d: torch.sigmoid(-d),
    "hellinger": lambda d: (0.5 * d).exp(),
    "neyman": lambda d: (-d).exp(),
    "jeffreys": lambda d: 1 + d.exp(),
}
"""h as a function of D = log ρ, by divergence."""

LARGEST = 10.0
"""Where log-weights are clamped, in nats: one sample must not be the whole batch."""


def weight_of(divergence: Divergence, log_ratio: Tensor) -> Tensor:
    """h(ρ) of each sample, from log ρ [B] clamped to ±10 nats; not normalized."""
    return WEIGHTS[divergence](log_ratio.clamp(-LARGEST, LARGEST))


class LastMean:
    """Divides weights by their mean over the whole batch of the update before; first: at the start."""

    def __init__(self, first: float) -> None:
        self.value = torch.tensor(first, dtype=torch.float64)
        self._shares: list[Tensor] = []

    def __call__(self, weight: Tensor) -> Tensor:
        """The weights [B] of one micro-batch, divided; they are noted for the next update."""
        self._shares.append(weight.detach().double().mean())
        return weight / self.value.to(weight)

    def settle(self) -> None:
        """After an update: the mean over all micro-batches and ranks is the next divisor.

        It stays as it was if that mean is not a positive number. Every rank calls this alike.
        """
        if self._shares:
            mean = gather(torch.stack(self._shares)).mean()
            usable = mean.isfinite() & (mean > 0)
            self.value, self._shares = torch.where(usable, mean, self.value.to(mean)), []

    def state_dict(self) -> Mapping[str, Any]:
        """The divisor."""
        return {"mean": self.value.cpu()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.value, self._shares = state["mean"], []


class Tilt:
    """The discriminator as a reward: the optimum becomes p_teacher · exp(D/β)/Z.

    The fake score learns the student's images x̂ with weights exp(−D(x̂)/β). It is then the score of
    p_G exp(−D/β), and that is the teacher's where p_G = p_teacher exp(D/β). A constant of each caption in D
    changes nothing.

    beta: β, in nats; level: time of the schedule at which D judges x̂, 0: as it is. Raises UserError for β
    that is not above 0 and for a negative level.
    """

    def __init__(self, beta: float = 1.0, *, level: float = 0.0) -> None:
        if not beta > 0 or level < 0:
            raise UserError(f"tilt: beta={beta} nats must be above 0 and level={level} not negative")
        self.beta, self.level = beta, level
        self.mean = LastMean(1.0)

    def __call__(self, log_ratio: Tensor) -> Tensor:
        """exp(−D/β) [B] over its mean in the update before; D [B] in nats."""
        return self.mean((-log_ratio / self.beta).clamp(-LARGEST, LARGEST).exp())
