"""Muon: momentum made orthogonal, for matrices between hidden layers; AdamW for everything else.

    B ← μ B + (1 − μ) g,  M = (1 − μ) g + μ B                     Nesterov's momentum
    X ← M/‖M‖, then five times X ← a X + (b A + c A²) X,          Newton-Schulz: U S Vᵀ → about U Vᵀ
        A = X Xᵀ
    W ← (1 − ηλ) W − 0.2 η √max(out, in) X                        Jordan et al. 2024; Liu et al. 2025

The factor gives an update the size of one of AdamW's, so that one learning rate serves both. A convolution's
kernel [out, in, h, w] is the matrix [out, in·h·w]. What touches pixels, words or classes is no hidden matrix:
embeddings, and layers of few inputs or outputs; neither are biases, gains and positions.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from lmsd.engine.parts import is_sharded
from lmsd.errors import Count, Measure, Number, UserError
from lmsd.types import at_least_float32

QUINTIC = (3.4445, -4.7750, 2.0315)
"""a, b, c: steep at 0, so that five rounds bring singular values of 0.002 and more to about 1."""
ROUNDS = 5


def orthogonal(matrix: Tensor) -> Tensor:
    """About U Vᵀ of a matrix U S Vᵀ [out,in]: singular values between 0.7 and 1.2.

    In bfloat16 on a GPU, in float32 or more elsewhere: not every CPU multiplies bfloat16 any faster.
    """
    x = matrix.bfloat16() if matrix.is_cuda else at_least_float32(matrix)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=1e-7)
    a, b, c = QUINTIC
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)


def hidden(player: nn.Module, smallest: int) -> list[Tensor]:
    """The weights of linear layers and convolutions with so many inputs and outputs that learn."""
    layers = (m for m in player.modules() if isinstance(m, (nn.Linear, nn.Conv2d)))
    weights = (layer.weight for layer in layers)
    return [w for w in weights if w.requires_grad and min(w.shape[:2]) >= smallest]


class Muon(Optimizer):
    """Muon for hidden matrices and AdamW for the rest; `choose` says which is which.

    lr, weight_decay: of both; momentum: of Muon; betas, eps: of AdamW; smallest: inputs and outputs that a
    hidden matrix has at least.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: Measure = 2e-3,
        *,
        momentum: Annotated[float, Number(0, 1)] = 0.95,
        betas: Sequence[float] = (0.9, 0.99),
        weight_decay: Measure = 0.0,
        eps: Measure = 1e-8,
        smallest: Count = 32,
    ) -> None:
        self.smallest = smallest
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eps": eps}
        rest = {"params": list(params), "hidden": False}
        super().__init__([rest, {"params": [], "hidden": True}], {**defaults, "betas": tuple(betas)})

    def choose(self, player: nn.Module) -> None:
        """Take the hidden matrices of the net whose parameters these are.

        Raises UserError where ranks hold only parts of them.
        """
        rest, matrices = self.param_groups
        chosen = {id(weight) for weight in hidden(player, self.smallest)}
        matrices["params"] = [p for p in rest["params"] if id(p) in chosen]
        rest["params"] = [p for p in rest["params"] if id(p) not in chosen]
        if any(map(is_sharded, matrices["params"])):
            raise UserError("optimizer=muon needs whole matrices, and fsdp=true cuts them: take adamw")

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of everything that has a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        rest, matrices = self.param_groups
        self._adapt(rest)
        for weight in matrices["params"]:
            if weight.grad is not None:
                self._turn(weight, weight.grad, matrices)
        return loss

    def _turn(self, weight: nn.Parameter, grad: Tensor, group: dict[str, Any]) -> None:
        """Muon's update of one matrix."""
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        mean = state["momentum"].lerp_(grad, 1 - group["momentum"])
        turned = orthogonal(grad.lerp(mean, group["momentum"]).flatten(1))
        size = 0.2 * max(turned.shape) ** 0.5
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(turned.view_as(weight), alpha=-group["lr"] * size)

    def _adapt(self, group: dict[str, Any]) -> None:
        """AdamW's update of everything else, in one kernel."""
        moving = [p for p in group["params"] if p.grad is not None]
        for parameter in moving:
            if not self.state[parameter]:
                zeros = {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
                step = torch.zeros((), dtype=torch.float32, device=parameter.device)
                self.state[parameter] = {"step": step, **zeros}
        states = [self.state[parameter] for parameter in moving]
        if moving:
            adamw(
                moving,
                [p.grad for p in moving if p.grad is not None],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                fused=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
