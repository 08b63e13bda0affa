"""The noising process: q(x_t|x₀), q(x_s|x_t,x₀), schedules, conversions, training-time laws. Only torch."""

from lmsd.process.gaussian import Normal, Process
from lmsd.process.knots import Shifted, Spaced
from lmsd.process.schedules import EDM, Article, Cosine, Discrete, Flow, Linear, ScaledLinear, Schedule
from lmsd.process.times import (
    Grid,
    Jumps,
    Levels,
    LogitNormal,
    LogNormal,
    MixedJumps,
    ShiftedUniform,
    Times,
    Uniform,
)

__all__ = [
    "EDM",
    "Article",
    "Cosine",
    "Discrete",
    "Flow",
    "Grid",
    "Jumps",
    "Levels",
    "Linear",
    "LogNormal",
    "LogitNormal",
    "MixedJumps",
    "Normal",
    "Process",
    "ScaledLinear",
    "Schedule",
    "Shifted",
    "ShiftedUniform",
    "Spaced",
    "Times",
    "Uniform",
]
