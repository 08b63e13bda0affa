"""What keeps a discriminator D smooth: (γ/2)(R1 + R2), on reals and on fakes.

    R(x)      = ‖∇_x D‖²                                exact, needs double backward (Mescheder et al. 2018)
    R_σ(x)    = E_n [(D(x + σn) − D(x))²]/σ²            finite difference, → R as σ → 0, n ~ N(0, I)

(γ/2) R_σ = λ E ΔD² with γ = 2 λ σ²: λ = 100 at σ = 0.01 (Lin et al. 2025, APT) is γ = 0.02. Compiled code and
fused attention have no double backward; and below `FINEST` a finite difference drowns in the rounding of
bfloat16 logits, which is 2⁻⁸ of them.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, TypeAlias

import torch
from torch import Tensor, nn

from lmsd.errors import Count, UserError, When, one_of
from lmsd.models.discriminator import double_backward_obstacle
from lmsd.objectives.augmentation import Augment
from lmsd.objectives.base import standard_normal
from lmsd.objectives.terms import Annealed, center, difference_penalty, exact_penalty, per_sample
from lmsd.rng import Rng

PenaltyKind: TypeAlias = Literal["fd", "exact", "none"]
Critic: TypeAlias = Callable[[Tensor], Tensor]
"""k candidates of every sample [k·B,C,H,W] → logits [k·B,heads], given all else that D sees of the sample."""

FINEST = 0.03
"""The σ below which bfloat16's rounding of the logits hides their finite difference."""


class Penalty:
    """(γ/2)(R1 + R2) on every lazy-th update of D, times lazy.

    kind: fd (the finite difference), exact or none; gamma: γ, a number, or a pair (start, end) joined by a
    cosine over its phase of the run; sigma: σ, in units of x; r1, r2: on reals, on fakes; lazy: updates of D
    from one penalty to the next; center: weight of (D(x) + D(x̃))² beside them, which keeps logits near 0 and
    leaves their difference alone; augment: of what D sees, None: nothing.

    Raises UserError for values out of range.
    """

    def __init__(
        self,
        kind: PenaltyKind = "fd",
        *,
        gamma: Annotated[float | Sequence[float], When("kind", ("fd", "exact"))] = 0.05,
        sigma: Annotated[float, When("kind", ("fd",))] = 0.05,
        r1: Annotated[bool, When("kind", ("fd", "exact"))] = True,
        r2: Annotated[bool, When("kind", ("fd", "exact"))] = True,
        lazy: Annotated[Count, When("kind", ("fd", "exact"))] = 1,
        center: float = 0.0,
        augment: Augment | None = None,
    ) -> None:
        one_of("penalty", "kind", kind, PenaltyKind)
        self.kind, self.gamma, self.sigma, self.lazy = kind, Annealed(gamma), sigma, lazy
        self.r1, self.r2, self.center, self.augment = r1, r2, center, augment or Augment()
        if self.gamma.least < 0 or sigma <= 0 or lazy < 1 or center < 0:
            raise UserError(
                f"penalty: gamma={self.gamma} and center={center} must be 0 or more, sigma={sigma} above 0 "
                f"and lazy={lazy} at least 1"
            )

    def check(self, discriminator: nn.Module, device: torch.device) -> None:
        """Refuse a discriminator without double backward; warn if σ is too fine for half precision."""
        obstacle = double_backward_obstacle(discriminator) if self.kind == "exact" else None
        if obstacle:
            raise UserError(
                f"penalty: kind=exact differentiates the discriminator twice, but {obstacle}; take kind=fd, "
                "the finite difference, which does so once"
            )
        if self.kind == "fd" and self.sigma < FINEST and torch.is_autocast_enabled(device.type):
            warnings.warn(
                f"penalty: sigma={self.sigma} is too fine for half precision, the penalties drown in its "
                f"rounding: sigma={FINEST} or more, or precision=32-true",
                stacklevel=2,
            )

    def alone(self, where: str) -> None:
        """Refuse what stands beside the penalties, for an objective that reads none of it."""
        if self.center or self.augment.on:
            raise UserError(f"{where}: penalty.center and augment are not read here: leave them out")

    def weight(self, progress: float, update: int) -> float:
        """γ/2 times lazy at this update of D, given by its number; 0 if no penalty is due."""
        due = update % self.lazy == 0 and self.kind != "none"
        return 0.5 * self.gamma(progress) * self.lazy if due else 0.0

    def judge(
        self, critic: Critic, real: Tensor, fake: Tensor, rng: Rng, *, due: bool
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """D's logits of reals and fakes, and the penalties [B] by name if due, in one forward pass of D."""
        of_real, of_fake, penalties = self._judged(critic, real, fake, rng, due=due)
        self.augment.note(of_real, of_fake)
        return of_real, of_fake, penalties

    def _judged(
        self, critic: Critic, real: Tensor, fake: Tensor, rng: Rng, *, due: bool
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        pair = torch.cat([real, fake])
        sides = {name: side for name, side, on in (("r1", 0, self.r1), ("r2", 1, self.r2)) if on and due}
        if not sides:
            of_real, of_fake = critic(pair).chunk(2)
            return of_real, of_fake, {}
        if self.kind == "exact":
            norms, logits = exact_penalty(critic, pair)
            of_real, of_fake = logits.chunk(2)
            return of_real, of_fake, {name: norms.chunk(2)[side] for name, side in sides.items()}
        step = self.sigma * standard_normal(rng, fake, "fd")  # one direction for both sides
        moved = [pair.chunk(2)[side] + step for side in sides.values()]
        of_real, of_fake, *rest = critic(torch.cat([pair, *moved])).chunk(2 + len(moved))
        penalties = {
            name: difference_penalty(logits, (of_real, of_fake)[side], self.sigma)
            for (name, side), logits in zip(sides.items(), rest, strict=True)
        }
        return of_real, of_fake, penalties

    def beside(
        self, real: Tensor, fake: Tensor, again: Callable[[], tuple[Tensor, ...]]
    ) -> dict[str, tuple[float, Tensor]]:
        """Further terms of D's loss by name: weight and [B]; again: the same pair, surely augmented."""
        found = {"center": (self.center, center(real, fake))} if self.center else {}
        if self.augment.consistency:
            moved = zip(again(), (real, fake), strict=True)
            value = sum(per_sample((one - other).square()) for one, other in moved)
            found["consistency"] = (self.augment.consistency, torch.as_tensor(value))
        return found
