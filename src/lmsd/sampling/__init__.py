"""From noise to images: the loop, the samplers, guidance."""

from lmsd.sampling.editing import edit, first_knot
from lmsd.sampling.guidance import PredictsX0, guided, sample
from lmsd.sampling.sampler import DenoiseAt, Knot, Level, Sampler, State, Step, levels
from lmsd.sampling.samplers import DPMSolverPP2M, FewStep, Heun, Tau

__all__ = [
    "DPMSolverPP2M",
    "DenoiseAt",
    "FewStep",
    "Heun",
    "Knot",
    "Level",
    "PredictsX0",
    "Sampler",
    "State",
    "Step",
    "Tau",
    "edit",
    "first_knot",
    "guided",
    "levels",
    "sample",
]
