"""From noise to images: the loop, the samplers, guidance."""

from lmsd.sampling.editing import edit, first_knot
from lmsd.sampling.generation import Generate, Generation
from lmsd.sampling.guidance import PredictsX0, begin, denoisers, guided, sample, walk
from lmsd.sampling.model import Model, load
from lmsd.sampling.plms import PLMS
from lmsd.sampling.rollout import Policy, log_prob, path_kl
from lmsd.sampling.sampler import DenoiseAt, Knot, Level, Sampler, State, Step, knots, levels, spread
from lmsd.sampling.samplers import Direct, DPMSolverPP2M, Heun, Tau, Transition
from lmsd.sampling.settings import Bound, Settings, bound_of

__all__ = [
    "PLMS",
    "Bound",
    "DPMSolverPP2M",
    "DenoiseAt",
    "Direct",
    "Generate",
    "Generation",
    "Heun",
    "Knot",
    "Level",
    "Model",
    "Policy",
    "PredictsX0",
    "Sampler",
    "Settings",
    "State",
    "Step",
    "Tau",
    "Transition",
    "begin",
    "bound_of",
    "denoisers",
    "edit",
    "first_knot",
    "guided",
    "knots",
    "levels",
    "load",
    "log_prob",
    "path_kl",
    "sample",
    "spread",
    "walk",
]
