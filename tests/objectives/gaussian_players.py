"""Players of distillation in one dimension, with every law a normal one and every net exact; float64.

The student of one step, x̂ = a x_T + b, makes N(b, a²). The denoiser of N(m, s²) under a flow is known, and so
is log p_data/p at every noise level: a fake score and its heads without a net.
"""

import math

import torch
from torch import nn

from lmsd.process import Flow, Process
from lmsd.types import Batch, Cond


def marginal(mean, std, t):
    """Mean and variance of x_t for x₀ ~ N(mean, std²): α = 1 − t, σ = t."""
    return (1 - t) * mean, ((1 - t) * std) ** 2 + t**2


def log_density(x, mean, std, t):
    center, variance = marginal(mean, std, t)
    return -0.5 * ((x - center) ** 2 / variance + torch.log(variance) + math.log(2 * math.pi))


class Line(nn.Module):
    """What all have in common: one number an image, x̂₀ predicted."""

    z_dim, shape, bound, prediction, precondition, sigma_data = 0, (1,), None, "x0", "none", 0.5

    def __init__(self, *values):
        super().__init__()
        self.process = Process(Flow())
        for name, value in zip(("first", "second"), values, strict=True):
            self.register_parameter(name, nn.Parameter(torch.tensor(value, dtype=torch.float64)))

    def condition(self, batch, drop=None):
        return Cond()

    def encode(self, batch):
        return batch

    def to_x0(self, native, x_t, t):
        return native

    def target(self, x_0, eps, t):
        return x_0


class Student(Line):
    """x̂ = a x_T + b."""

    def forward(self, x, t, cond, z=None, *, output="x0"):
        return self.first * x + self.second


class Normal(Line):
    """The denoiser of N(m, s²); first: m, second: log s."""

    @property
    def law(self):
        return self.first, self.second.exp()

    def forward(self, x, t, cond, z=None, *, output="x0"):
        mean, std = self.law
        t = t.double()[:, None]
        center, variance = marginal(mean, std, t)
        return mean + (1 - t) * std**2 / variance * (x - center)


class ExactFake(nn.Module):
    """A fake score that is the denoiser of a normal law, with the logits that its heads should learn."""

    def __init__(self, mean, std, *, data=(0.0, 1.0)):
        super().__init__()
        self.score, self.data = Normal(mean, math.log(std)), data

    def condition(self, batch, drop=None):
        return Cond()

    def forward(self, x_t, t, cond, z=None, *, output="x0"):
        at = t.double()[:, None]
        mean, std = (value.detach() for value in self.score.law)
        told = log_density(x_t, *self.data, at) - log_density(x_t, mean, std, at)
        return self.score(x_t, t, cond), told


def players(student=(1.0, 0.0), teacher=(0.5, 0.7), fake=None, data=None):
    """(a, b) of the student; (m, s) of the teacher, of the fake (the student's law) and of the data."""
    fake = fake or (student[1], abs(student[0]))
    return {
        "generator": Student(*student),
        "fake": ExactFake(*fake, data=data or teacher),
        "teacher": Normal(teacher[0], math.log(teacher[1])),
    }


def numbers(count, start=0):
    position = torch.arange(start, start + count)
    return Batch(torch.zeros(count, 1, dtype=torch.float64), position)
