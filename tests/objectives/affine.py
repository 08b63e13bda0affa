"""A policy in one dimension: x̂₀ = a_k x + b_k, and what its chain does, in closed form."""

import torch
from tiny_methods import drawn
from torch import nn

from lmsd.models.codec import bounded
from lmsd.process import Flow, Process
from lmsd.rewards import Reward
from lmsd.rng import Rng
from lmsd.sampling import levels
from lmsd.types import Batch, Cond


class Affine(nn.Module):
    """One (a, b) for every knot of `steps`; float64. Numbers, not images, unless it is given a bound."""

    z_dim, shape, bound = 0, (1,), None

    def __init__(self, a, b):
        super().__init__()
        self.process = Process(Flow())
        self.steps = len(a)
        self.a, self.b = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (a, b))

    def condition(self, batch, drop=None):
        return Cond()

    def decode(self, x):
        return bounded(x, self.bound)

    def forward(self, x, t, cond, z=None, *, output="x0"):
        k = ((1 - t[0]) * self.steps).round().long()
        return self.a[k] * x + self.b[k]


def gaussian(steps, mean=0.0, std=1.0):
    """The exact x̂₀ of data N(mean, std²)."""
    table = levels(Process(Flow()).schedule, steps)[:-1]
    gain = [k.alpha * std**2 / (k.alpha**2 * std**2 + k.sigma**2) for k in table]
    return Affine(gain, [mean * (1 - g * k.alpha) for g, k in zip(gain, table, strict=True)])


def moments(model, policy):
    """Mean and variance of x₀, differentiable in the model's a and b."""
    mean, variance = torch.zeros(()).double(), torch.ones(()).double()
    for k, kernel in enumerate(policy.transitions(model.process)):
        slope = kernel.keep + kernel.push * model.a[k]
        mean = slope * mean + kernel.push * model.b[k]
        variance = slope**2 * variance + kernel.std**2
    return mean, variance


class Polynomial(Reward):
    """c₁ x + c₂ x²."""

    differentiable = True

    def __init__(self, first, second=0.0):
        self.first, self.second = first, second

    def __call__(self, images, batch, players=None):
        x = images[:, 0]
        return self.first * x + self.second * x.square()


class Clock:
    """Counts as the engine does."""

    total_images = 1
    progress = 0.0

    def __init__(self, updates=0, images=0):
        self.updates, self.images = updates, images
        self.played = {}


def batch_at(update, size):
    position = torch.arange(update * size, (update + 1) * size)
    return Batch(torch.zeros(size, 1, dtype=torch.float64), position)


def first_turn(objective, players, batch, clock, seed=0):
    with torch.no_grad():
        return next(objective.turns(players, batch, clock, Rng(seed, batch.position)))


def policy(steps, **options):
    return drawn(steps, last_std=0.2, **options)
