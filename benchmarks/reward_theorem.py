"""The discriminator as a reward, in one dimension, where everything is known.

    python benchmarks/reward_theorem.py            the table of biases, exact, in seconds
    python benchmarks/reward_theorem.py --train    also GRPO with a trained discriminator at 50 steps, minutes
    python benchmarks/reward_theorem.py --quick    both, the second for a few updates only

Data N(1, 1), model N(0, 1.5²) with its exact x̂₀ on a flow (a_T = 0), τ = 1. D* = log p_data/p_model is
quadratic; p_model exp(D*/β) is N(1, 1) at β = 1 nat and N(9/7, 0.802²) at β = 0.5, which overshoots.

The chain's steps are normal with a fixed std and a mean that is free, so the best policy of K steps is a
linear-quadratic regulator: V_k(x) = −½ P x² + L x, and with κ = β/std² and the model's mean m(x) = A x + B

    mean*(x) = (κ m(x) + L)/(P + κ),    P ← P κ A²/(P + κ),    L ← A (κ L − κ P B)/(P + κ)

It is p_model exp(r/β) only as K → ∞: the exact optimum's stds differ from the policy's by O(1/K).
"""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmsd.objectives import Normalizer, PolicyGradient, Reference, Update
from lmsd.process import Flow, Process
from lmsd.rewards import Reward
from lmsd.rng import Rng
from lmsd.sampling import Policy, Settings, levels
from lmsd.types import Batch, Cond

DATA, MODEL = (1.0, 1.0), (0.0, 1.5)
LAST_STD = 0.05


def quadratic(data: Sequence[float] = DATA, model: Sequence[float] = MODEL) -> tuple[float, float]:
    """(P, L) of D* = log p_data − log p_model = −½ P x² + L x + constant."""
    (m, s), (m0, s0) = data, model
    return 1 / s**2 - 1 / s0**2, m / s**2 - m0 / s0**2


def tilted(p: float, l: float, beta: float, model: Sequence[float] = MODEL) -> tuple[float, float]:
    """Mean and std of p_model exp((−½ P x² + L x)/β)."""
    precision = 1 / model[1] ** 2 + p / beta
    return (model[0] / model[1] ** 2 + l / beta) / precision, precision**-0.5


@dataclass(frozen=True)
class Chain:
    """The model's K transitions: x_s ~ N(A x_t + B, std²)."""

    a: list[float]
    b: list[float]
    std: list[float]


def chain(steps: int, *, last_std: float = LAST_STD, model: Sequence[float] = MODEL) -> Chain:
    """The model's own chain, its exact x̂₀ = m + g (x − α m), g = α s²/(α² s² + σ²)."""
    process, (m, s) = Process(Flow()), model
    table, kernels = levels(process.schedule, steps), Policy(last_std=last_std).transitions(process, steps)
    gains = [level.alpha * s**2 / (level.alpha**2 * s**2 + level.sigma**2) for level in table[:-1]]
    a = [k.keep + k.push * g for k, g in zip(kernels, gains, strict=True)]
    b = [k.push * (1 - g * level.alpha) * m for k, g, level in zip(kernels, gains, table, strict=False)]
    return Chain(a, b, [k.std for k in kernels])


def best(steps: int, beta: float, *, p: float, l: float, last_std: float = LAST_STD) -> tuple[float, float]:
    """Mean and std of x₀ under the best policy of K steps; beta = inf: under the model itself."""
    model = chain(steps, last_std=last_std)
    rules = []
    for a, b, std in reversed(list(zip(model.a, model.b, model.std, strict=True))):
        kappa = beta / std**2
        share = 1.0 if math.isinf(beta) else kappa / (p + kappa)
        shift = 0.0 if math.isinf(beta) else l / (p + kappa)
        rules.append((share * a, share * b + shift, std))
        p, l = share * p * a**2, a * share * (l - p * b)
    mean, variance = 0.0, 1.0
    for a, b, std in reversed(rules):
        mean, variance = a * mean + b, a**2 * variance + std**2
    return mean, variance**0.5


class Affine(nn.Module):
    """x̂₀ = a_k x + b_k with its own a, b at every knot of the chain; starts as the model's exact x̂₀."""

    z_dim, shape, bound = 0, (1,), None  # numbers, not images

    def __init__(self, steps: int, model: Sequence[float] = MODEL) -> None:
        super().__init__()
        self.process, self.steps = Process(Flow()), steps
        m, s = model
        table = levels(self.process.schedule, steps)[:-1]
        gain = [level.alpha * s**2 / (level.alpha**2 * s**2 + level.sigma**2) for level in table]
        self.a = nn.Parameter(torch.tensor(gain))
        self.b = nn.Parameter(
            torch.tensor([m * (1 - g * level.alpha) for g, level in zip(gain, table, strict=True)])
        )

    def condition(self, batch: Batch, drop: Tensor | None = None) -> Cond:
        """There is none."""
        return Cond()

    def decode(self, x: Tensor) -> Tensor:
        """The numbers themselves."""
        return x

    def forward(
        self, x: Tensor, t: Tensor, cond: Cond, z: Tensor | None = None, *, output: str = "x0"
    ) -> Tensor:
        """x̂₀ [B,1]."""
        k = ((1 - t[0]) * self.steps).round().long()
        return self.a[k] * x + self.b[k]


class Quadratic(Reward):
    """−½ P x² + L x: a discriminator's logit with features (x, x²), trained or exact; not clamped."""

    def __init__(self, p: float, l: float) -> None:
        self.p, self.l = p, l

    def __call__(self, images: Tensor, batch: Batch, players: object = None) -> Tensor:
        """[B]."""
        x = images[:, 0]
        return -0.5 * self.p * x.square() + self.l * x


def trained_discriminator(seed: int, *, samples: int = 200_000) -> tuple[float, float]:
    """(P, L) of a relativistic discriminator on (x, x²): Newton's method on E softplus(−w·Δφ)."""
    draw = torch.Generator().manual_seed(seed)
    steps = 50
    rng = Rng(seed, torch.arange(samples))
    fake = (
        Policy(last_std=LAST_STD)
        .rollout(Affine(steps), Cond(), settings=drawn(steps), rng=rng, shape=(1,))
        .images[:, 0]
        .double()
    )
    real = DATA[0] + DATA[1] * torch.randn(samples, generator=draw, dtype=torch.float64)
    apart = torch.stack([real - fake, real.square() - fake.square()], 1)
    w = torch.zeros(2, dtype=torch.float64)
    for _ in range(20):
        sigma = torch.sigmoid(-(apart @ w))
        slope = (sigma[:, None] * apart).mean(0)
        curve = (apart.T * (sigma * (1 - sigma))) @ apart / samples
        w = w + torch.linalg.solve(curve, slope)
    return -2 * float(w[1]), float(w[0])


def drawn(steps: int) -> Settings:
    """Numbers, not images: no bound on what is predicted."""
    return Settings(steps, bound=None)


class Counting:
    """The clock that a plain loop needs."""

    images, updates, total_images, progress = 0, 0, 1, 0.0
    played: dict[str, int] = {}  # noqa: RUF012


def train(
    beta: float, p: float, l: float, *, steps: int, updates: int, batch: int = 2048, seed: int = 0
) -> tuple[float, float, float]:
    """Mean, std and path KL after GRPO (centered, path KL, τ = 1) from the model."""
    players = {"generator": Affine(steps), "reference": Affine(steps).requires_grad_(False)}
    reward = Quadratic(p, l)
    objective = PolicyGradient(
        Policy(last_std=LAST_STD),
        reward,
        settings=drawn(steps),
        advantages=Normalizer("center"),
        update=Update(clip=None),
        reference=Reference(beta),
        group=batch,
    )
    optimizer = torch.optim.Adam(players["generator"].parameters(), lr=0.02, betas=(0.9, 0.99))
    clock, kl = Counting(), 0.0
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = 0.02 * 0.5 * (1 + math.cos(math.pi * update / updates))
        clock.images = clock.updates = update
        position = torch.arange(update * batch, (update + 1) * batch)
        data = Batch(torch.zeros(batch, 1), position)
        with torch.no_grad():
            script = objective.turns(players, data, clock, Rng(seed, position))
            turn = next(script)
        optimizer.zero_grad()
        loss = turn.loss()
        loss.value.backward()
        optimizer.step()
        kl = float(loss.logs["kl"])
    rng = Rng(seed + 1, torch.arange(100_000))
    policy = Policy(last_std=LAST_STD)
    made = policy.rollout(players["generator"], Cond(), settings=drawn(steps), rng=rng, shape=(1,)).images
    return float(made.mean()), float(made.std()), kl


def table() -> str:
    """The bias of K steps."""
    p, l = quadratic()
    lines = [
        f"exact; last std {LAST_STD}",
        "",
        "| K | model | β = 1: mean, std | β = 0.5: mean, std |",
        "|---|---|---|---|",
    ]
    for steps in (2, 4, 8, 16, 50, 200, 1000):
        cells = [best(steps, beta, p=p, l=l) for beta in (math.inf, 1.0, 0.5)]
        lines.append(f"| {steps} | " + " | ".join(f"{mean:.3f}, {std:.3f}" for mean, std in cells) + " |")
    limits = [MODEL, tilted(p, l, 1.0), tilted(p, l, 0.5)]
    lines.append("| limit | " + " | ".join(f"{mean:.3f}, {std:.3f}" for mean, std in limits) + " |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """The table, and the training if asked for."""
    torch.set_num_threads(1)
    print(table())
    if not {"--train", "--quick"} & set(arguments):
        return 0
    updates = 20 if "--quick" in arguments else 400
    for seed in (0,) if "--quick" in arguments else (0, 1, 2):
        p, l = trained_discriminator(seed)
        print(f"seed {seed}: discriminator P, L = {p:.3f}, {l:.3f}; exact {quadratic()}")
        for beta in (1.0, 0.5):
            began = time.monotonic()
            mean, std, kl = train(beta, p, l, steps=50, updates=updates, seed=seed)
            seconds = time.monotonic() - began
            print(f"  β = {beta}: mean {mean:.3f}, std {std:.3f}, path KL {kl:.3f} nats ({seconds:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
