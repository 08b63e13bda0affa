"""From noise to images: the loop, the samplers, guidance."""

from lmsd.sampling.editing import edit, first_knot
from lmsd.sampling.generation import Generate, Generation
from lmsd.sampling.guidance import PredictsX0, denoisers, guided, sample
from lmsd.sampling.model import Model, load
from lmsd.sampling.rollout import Policy, log_prob, path_kl
from lmsd.sampling.sampler import DenoiseAt, Knot, Level, Sampler, State, Step, levels
from lmsd.sampling.samplers import Direct, DPMSolverPP2M, Heun, Kernel, Tau

__all__ = [
    "DPMSolverPP2M",
    "DenoiseAt",
    "Direct",
    "Generate",
    "Generation",
    "Heun",
    "Kernel",
    "Knot",
    "Level",
    "Model",
    "Policy",
    "PredictsX0",
    "Sampler",
    "State",
    "Step",
    "Tau",
    "denoisers",
    "edit",
    "first_knot",
    "guided",
    "levels",
    "load",
    "log_prob",
    "path_kl",
    "sample",
]
