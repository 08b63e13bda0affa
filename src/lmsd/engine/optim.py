"""Updates: the learning rate as a function of images, the gradient's norm, clipping, and the finite check.

lr(n) = lr · min(1, n/n_w) · ½(1 + cos πn/N)     n: images at the middle of the batch, so that neither the
                                                 first nor the last step is wasted on a rate of zero
g ← g · min(1, c/‖g‖)
θ ← step(θ, g) if ‖g‖ is finite, else θ          one number decides, equal on all ranks after the reduction
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from lmsd.engine.parts import all_of
from lmsd.errors import UserError, one_of

Decay: TypeAlias = Literal["cosine", "constant"]
MakeOptimizer: TypeAlias = Callable[[list[nn.Parameter]], Optimizer]


def adamw(
    params: Iterable[nn.Parameter],
    *,
    lr: float = 2e-4,
    betas: Sequence[float] = (0.9, 0.99),
    weight_decay: float = 0.0,
    eps: float = 1e-8,
) -> AdamW:
    """Fused AdamW, the default (Loshchilov and Hutter 2019); fused is 3 to 4 times faster, on CPUs too."""
    return AdamW(params, lr=lr, betas=(betas[0], betas[1]), weight_decay=weight_decay, eps=eps, fused=True)


@dataclass(frozen=True)
class Optimization:
    """How the players of a run are updated and averaged, by role.

    makers: what makes an optimizer out of parameters, one for each role that learns; clips: largest gradient
    norm, None or left out for any; averages: half-lives in images; warmup_images, decay: the learning rate's
    law, of all alike.

    Raises UserError for a law that is not there.
    """

    makers: Mapping[str, MakeOptimizer]
    clips: Mapping[str, float | None] = field(default_factory=dict)
    averages: Mapping[str, Sequence[int]] = field(default_factory=dict)
    warmup_images: int = 0
    decay: Decay = "constant"

    def __post_init__(self) -> None:
        one_of("optim", "decay", self.decay, Decay)
        if self.warmup_images < 0:
            raise UserError(f"warmup_images={self.warmup_images} must not be negative")

    def check(self, players: Iterable[str], learners: Sequence[str]) -> None:
        """Refuse a player that learns without an optimizer, and names of nobody."""
        known = sorted(players)
        for name in learners:
            if name not in self.makers:
                raise UserError(f"player {name!r} has no optimizer: add one under optim.{name}")
        for what, named in (
            ("optim", self.makers),
            ("optim.clip", self.clips),
            ("optim.averages", self.averages),
        ):
            if strange := sorted(named.keys() - set(known)):
                raise UserError(f"{what} names {strange}; the players are {known}")
        if still := sorted(self.averages.keys() - set(learners)):
            raise UserError(
                f"optim.averages names {still}, who do not learn: an average of them is what they are"
            )

    def rate(self, images: float, total_images: int) -> float:
        """The factor on the learning rates after `images` images."""
        return rate(images, total_images=total_images, warmup_images=self.warmup_images, decay=self.decay)


def rate(images: float, *, total_images: int, warmup_images: int, decay: Decay) -> float:
    """The factor on the learning rate after `images` images, in [0, 1]."""
    warm = min(1.0, images / warmup_images) if warmup_images else 1.0
    if decay == "constant":
        return warm
    return warm * 0.5 * (1.0 + math.cos(math.pi * min(1.0, images / total_images)))


def set_rate(optimizer: Optimizer, factor: float) -> None:
    """Multiply the configured learning rate of every group; the configured one stays under "initial_lr"."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def clip(parameters: Sequence[nn.Parameter], limit: float | None) -> Tensor:
    """‖g‖ over all gradients before clipping, a scalar on their device; they are scaled to at most limit."""
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = all_of(nn.utils.get_total_norm(grads))
    if limit is not None:
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm


def step(optimizer: Optimizer, norm: Tensor) -> None:
    """One step, or none where `norm` is not finite.

    Fused optimizers on a GPU decide on the device; others wait for it, and on a CPU there is no waiting.
    """
    if norm.device.type == "cpu" or not _decides_on_device(optimizer):
        if math.isfinite(norm.item()):
            optimizer.step()
        return
    step_on_device(optimizer, norm)


def step_on_device(optimizer: Optimizer, norm: Tensor) -> None:
    """One step of a fused optimizer, which skips itself: torch.amp.GradScaler's protocol without a scale."""
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
    optimizer.step()
    del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]


def _decides_on_device(optimizer: Optimizer) -> bool:
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))
