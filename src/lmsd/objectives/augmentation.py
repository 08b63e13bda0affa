"""Adaptive augmentation of what a discriminator sees, so that it cannot learn its images by heart.

    D(T x_s, T x_t, s, t, c)     T drawn for each sample: the same for its real, its fake, and for x_t
    p ← p + sign(r − r*) · images/span,    in [0, most]      p: probability of each transform (Karras et al.
                                                             2020, ADA, sec. 3.2)
    sign    r = E sign[D(train) − D(fake)]
    gap     r = (Δ_train − Δ_val)/Δ_train,   Δ = E [D(T real) − D(T fake)] at the same (T x_t, t, c)

Logits of a relativistic D are free up to a number for each (x_t, t, c), so r is made of differences within a
pair alone: the sign of a single logit says nothing. Where train and val share their captions,
Δ_train − Δ_val = E D(train) − E D(val).

A transform may act on noisy images if it commutes with the noise: T(α x₀ + σ ε) has the law of α T x₀ + σ ε.

    mirror, turn     permute pixels, and N(0, I) with them
    shift, cutout    lose pixels; in their places come those of a noised image of one value, of the same path
                     (x_s, x_t): q(·|T x₀) exactly
    color            changes the noise too: clean images alone, where D sees no x_t
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import torch
from torch import Tensor

from lmsd.data.transforms import jitter
from lmsd.errors import Count, Measure, Share, UserError, When, one_of
from lmsd.process.gaussian import Process
from lmsd.ranks import gather
from lmsd.rng import Rng
from lmsd.types import Batch

Transform: TypeAlias = Literal["shift", "mirror", "turn", "cutout", "color"]
Strength: TypeAlias = Literal["none", "fixed", "sign", "gap"]
Verdicts: TypeAlias = Callable[[Batch, Rng], tuple[Tensor, ...]]
"""(batch, rng) → D's logits of its reals and of the fakes beside them, both through T, [B, heads] each."""

EVERY = 4
"""Updates of D from one change of the strength to the next."""
_STREAM, _HELD, _SURE = 7_919, 39_595, 23_757  # turns of random numbers beside the game's
_COLOR = 0.3


@dataclass(frozen=True)
class View:
    """One draw of T for every sample, for x_s and x_t alike.

    source: which pixel comes to each place, int64 [B,H·W]; kept: whether it is one of the image's, bool
    [B,1,H,W]; behind_s, behind_t: what comes elsewhere [B,C,H,W]; tinted: whose color changes, bool [B]; rng:
    by which.
    """

    source: Tensor
    kept: Tensor
    behind_s: Tensor
    behind_t: Tensor
    tinted: Tensor
    rng: Rng

    def earlier(self, x_s: Tensor) -> Tensor:
        """T x_s of k candidates of every sample, [k·B,C,H,W], differentiable."""
        seen = [self._moved(x, self.behind_s) for x in x_s.chunk(len(x_s) // len(self.source))]
        if bool(self.tinted.any()):
            where = self.tinted[:, None, None, None]
            seen = [torch.where(where, jitter(x, self.rng, _COLOR), x) for x in seen]
        return torch.cat(seen)

    def later(self, x_t: Tensor) -> Tensor:
        """T x_t, [B,C,H,W]."""
        return self._moved(x_t, self.behind_t)

    def _moved(self, x: Tensor, behind: Tensor) -> Tensor:
        places = self.source[:, None].expand(-1, x.shape[1], -1)
        return torch.where(self.kept, x.flatten(2).gather(2, places).view_as(x), behind)


class Augment:
    """How strongly, and in which ways; see the module.

    strength: none; fixed at `p`; or adapted by sign or gap (which compares with val); transforms: those that
    leave every caption true; p: at the start of the run, [0, 1]; target: r* of the adapted; span: images in
    which p would go from 0 to 1; most: largest p; pixels: of a shift, at most; background: the value that
    comes from outside, in [-1, 1]; consistency: weight of (D(T x) − D(T' x))² in D's loss, T' drawn surely.

    Raises UserError for strengths without transforms and for values out of range.
    """

    def __init__(
        self,
        strength: Strength = "none",
        *,
        transforms: Annotated[Sequence[Transform], When("strength", ("fixed", "sign", "gap"))] = (),
        p: Annotated[Share, When("strength", ("fixed", "sign", "gap"))] = 0.0,
        target: Annotated[Share, When("strength", ("sign", "gap"))] = 0.6,
        span: Annotated[Count, When("strength", ("sign", "gap"))] = 100_000,
        most: Annotated[Share, When("strength", ("sign", "gap"))] = 0.8,
        pixels: Annotated[Count, When("strength", ("fixed", "sign", "gap"))] = 1,
        background: Annotated[float, When("strength", ("fixed", "sign", "gap"))] = -1.0,
        consistency: Annotated[Measure, When("strength", ("fixed", "sign", "gap"))] = 0.0,
    ) -> None:
        one_of("augment", "strength", strength, Strength)
        for name in transforms:
            one_of("augment", "transforms", name, Transform)
        if strength != "none" and not transforms:
            raise UserError(
                f"augment: strength={strength} and no transform is named that leaves captions true: give "
                "transforms=[shift] or others of shift, mirror, turn, cutout, color"
            )
        if not 0 <= p <= 1 or not 0 <= most <= 1 or span < 1 or pixels < 1 or not -1 <= background <= 1:
            raise UserError(
                f"augment: p={p:g} and most={most:g} are shares from 0 to 1, span={span} and pixels={pixels} "
                f"at least 1, background={background:g} from -1 to 1"
            )
        self.strength, self.transforms, self.p = strength, tuple(transforms), torch.tensor(float(p))
        self.target, self.span, self.most, self.pixels = target, span, most, pixels
        self.background, self.consistency = background, consistency
        self.held: Batch | None = None
        self.updates = 0
        self.totals = torch.zeros(3, 2, dtype=torch.float64)  # sums and counts: sign, Δ_train, Δ_val
        self._sums: list[Tensor] = []

    @property
    def on(self) -> bool:
        """Whether it does anything."""
        return self.strength != "none"

    def prepare(self, held_out: Callable[[], Batch | None], *, sees_x_t: bool, pixels: bool) -> None:
        """Take held-out images for the gap. Raises UserError for what cannot be: see the module."""
        if self.on and not pixels:
            raise UserError("augment: it acts on pixels, and this run diffuses latents: take strength=none")
        if self.on and "color" in self.transforms and sees_x_t:
            raise UserError(
                "augment: color does not commute with the noise of x_t, which D sees with "
                "pairing=transition: leave it out, or take pairing=marginal"
            )
        if self.strength == "gap":
            self.held = held_out()
            if self.held is None:
                raise UserError("augment: strength=gap compares with val, and there is none: take sign")

    def view(
        self, like: Tensor, s: Tensor, t: Tensor, rng: Rng, *, process: Process, surely: bool = False
    ) -> View | None:
        """T of every sample at its jump t → s; None where nothing is augmented. surely: with p = 1."""
        if not self.on:
            return None
        own, side = rng.at(rng.turn + (_SURE if surely else _STREAM)), like.shape[-1]
        p = torch.ones(()) if surely else self.p
        drawn = {name: own.uniform((), f"augment.{name}") < p.to(like.device) for name in self.transforms}
        place = torch.arange(side, device=like.device)
        row, column = (
            grid.expand(len(like), side, side) for grid in torch.meshgrid(place, place, indexing="ij")
        )
        kept = torch.ones_like(row, dtype=torch.bool)
        if "cutout" in drawn:
            kept = ~(self._box(own, side, row, column) & _wide(drawn["cutout"]))
        if "shift" in drawn:
            by = own.integer(-self.pixels, self.pixels + 1, (2,), "augment.by") * drawn["shift"][:, None]
            row, column = row - by[:, 0, None, None], column - by[:, 1, None, None]
            kept = kept & (row >= 0) & (row < side) & (column >= 0) & (column < side)
            row, column = row.clamp(0, side - 1), column.clamp(0, side - 1)
        if "turn" in drawn:
            quarters = own.integer(1, 4, (), "augment.quarters") * drawn["turn"]
            for quarter in range(1, 4):
                turned = _wide(quarters >= quarter)
                row, column = torch.where(turned, column, row), torch.where(turned, side - 1 - row, column)
        if "mirror" in drawn:
            column = torch.where(_wide(drawn["mirror"]), side - 1 - column, column)
        behind = process.pair(torch.full_like(like, self.background), s, t, own)
        _, sigma = process.alpha_sigma(s, like)
        tinted = drawn.get("color", torch.zeros_like(s, dtype=torch.bool)) & (sigma.flatten() == 0)
        source = (row * side + column).flatten(1)
        return View(source, kept[:, None], behind[0].to(like), behind[1].to(like), tinted, own)

    @staticmethod
    def _box(rng: Rng, side: int, row: Tensor, column: Tensor) -> Tensor:
        """A square of half the image's side around a random place, bool [B,H,W]."""
        middle, reach = rng.integer(0, side, (2,), "augment.box"), side // 4
        near = ((grid - middle[:, k, None, None]).abs() <= reach for k, grid in enumerate((row, column)))
        return next(near) & next(near)

    # -- the strength ---------------------------------------------------------------------------------------

    def note(self, real: Tensor, fake: Tensor) -> None:
        """Take in D's logits [B, heads] of the training batch and of the fakes beside it."""
        if self.strength in ("sign", "gap"):
            difference = (real - fake).detach().double()
            of = (difference.sign(), difference)
            self._sums.append(torch.stack([*map(_counted, of), torch.zeros_like(_counted(difference))]))

    def watch(self, verdicts: Verdicts, rng: Rng) -> None:
        """Where a change is due, D's logits of held-out images, one for each sample of the batch."""
        if self.held is not None and (self.updates + 1) % EVERY == 0:
            own = rng.at(_HELD)
            rows = own.integer(0, len(self.held), (), "augment.held").to(self.held.x.device)
            held = self.held.rows(rows).to(rng.position.device)
            real, fake = verdicts(held, own)
            found = _counted((real - fake).double())
            self._sums.append(torch.stack([torch.zeros_like(found), torch.zeros_like(found), found]))

    def settle(self) -> None:
        """Change the strength where that is due; all ranks call it, after the last turn of an update."""
        if not self._sums:
            return
        found = gather(torch.stack(self._sums).sum(0)[None]).sum(0).to(self.totals.device)
        self._sums = []
        self.totals = self.totals + torch.where(found.isfinite().all(), found, torch.zeros_like(found))
        self.updates += 1
        if self.updates % EVERY:
            return
        means, images = self.totals[:, 0] / self.totals[:, 1], self.totals[0, 1]
        r = means[0] if self.strength == "sign" else (means[1] - means[2]) / means[1]
        step = (r - self.target).sign().nan_to_num() * images / self.span
        self.p = (self.p + step).clamp(0.0, self.most).float()
        self.totals = torch.zeros_like(self.totals)

    def logs(self, like: Tensor) -> dict[str, Tensor]:
        """The strength, on the device of `like`."""
        return {"augment": self.p.to(like.device)} if self.on else {}

    def state_dict(self) -> Mapping[str, Any]:
        """The strength, and what has been noted since its last change; nothing unless it adapts."""
        if self.strength not in ("sign", "gap"):
            return {}
        return {"augment": {"p": self.p, "updates": self.updates, "totals": self.totals}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        if "augment" in state:
            own = state["augment"]
            self.p, self.updates, self.totals, self._sums = own["p"], own["updates"], own["totals"], []


def _wide(flags: Tensor) -> Tensor:
    return flags[:, None, None]


def _counted(values: Tensor) -> Tensor:
    """Sum and number of the samples' means over heads, [B, heads] → [2]."""
    each = values.flatten(1).mean(1)
    return torch.stack([each.sum(), torch.full_like(each.sum(), len(each))])
