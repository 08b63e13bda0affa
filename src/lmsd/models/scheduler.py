"""The `scheduler_config.json` of a diffusers folder: the process a net was trained on, and how it is sampled.

    chains     DDIM, PNDM, Euler, DPM-Solver++ 2M, ancestral ones, on any spacing, offset, end and rescaling
    flows      Euler and DPM-Solver++ 2M, with a static or a dynamic shift
    levels     EDM's Euler and DPM-Solver++ 2M

What is not followed (another solver, another grid of noise levels) is told in `notes`; the sampler is then
the nearest of ours. Samplers are named as plain data: their classes stand a floor above.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lmsd.errors import UserError
from lmsd.process import EDM, Cosine, Discrete, Flow, Linear, ScaledLinear, Schedule, Shifted, Spaced
from lmsd.process.knots import dynamic_shift, shifted
from lmsd.types import Prediction

DDIM: Mapping[str, Any] = {"_target_": "lmsd.sampling.Tau", "tau": 0.0}
ANCESTRAL: Mapping[str, Any] = {"_target_": "lmsd.sampling.Tau", "tau": 1.0}
PLMS: Mapping[str, Any] = {"_target_": "lmsd.sampling.PLMS"}
HEUN: Mapping[str, Any] = {"_target_": "lmsd.sampling.Heun"}
DPMPP: Mapping[str, Any] = {"_target_": "lmsd.sampling.DPMSolverPP2M"}

PREDICTIONS: Mapping[str, Prediction] = {
    "epsilon": "eps",
    "sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "velocity",
}


@dataclass(frozen=True)
class Scheduled:
    """A process as a folder has it: its schedule with the folder's knots, the net's prediction, a sampler.

    sampler: a node for `lmsd.spec.build`; notes: what of the folder is walked otherwise, one sentence each;
    sigma_data: σ_d of a net that is preconditioned as EDM's are, None for any other.
    """

    schedule: Schedule
    prediction: Prediction
    sampler: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    sigma_data: float | None = None


class Levels(EDM):
    """EDM as diffusers' nets are told of it: by ¼ ln σ itself."""

    def model_time(self, t: Tensor) -> Tensor:
        """¼ ln σ."""
        return super().model_time(t) / 1000


@dataclass(frozen=True)
class Solver:
    """How a scheduler of diffusers walks; exact: as our sampler does it.

    rule: its spacing where the file names none; spare, whole: of `Spaced`; sigmas: it works in σ/α, so that
    trailing and linspace begin with σ and the end has a name of its own.
    """

    sampler: Mapping[str, Any]
    rule: str
    spare: bool = False
    sigmas: bool = False
    exact: bool = True
    twists: Mapping[str, Any] = field(default_factory=dict)
    """options with the one value that our sampler stands for"""


NO_TWIST: Mapping[str, Any] = {
    "thresholding": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "interpolation_type": "linear",
    "stochastic_sampling": False,
    "invert_sigmas": False,
    "shift_terminal": None,
}
DPM_TWIST = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}
SOLVERS: Mapping[str, Solver] = {
    "DDIMScheduler": Solver(DDIM, "leading", twists={"clip_sample": False}),
    "DDPMScheduler": Solver(ANCESTRAL, "leading", twists={"clip_sample": False}),
    "PNDMScheduler": Solver(PLMS, "leading", twists={"skip_prk_steps": True}),
    "EulerDiscreteScheduler": Solver(DDIM, "linspace", sigmas=True, twists={"timestep_type": "discrete"}),
    "EulerAncestralDiscreteScheduler": Solver(ANCESTRAL, "linspace", sigmas=True),
    "FlowMatchEulerDiscreteScheduler": Solver(DDIM, "trailing"),
    "DPMSolverMultistepScheduler": Solver(DPMPP, "linspace", spare=True, twists=DPM_TWIST),
    "UniPCMultistepScheduler": Solver(DPMPP, "linspace", spare=True, exact=False),
    "DEISMultistepScheduler": Solver(DPMPP, "linspace", spare=True, exact=False),
    "DPMSolverSinglestepScheduler": Solver(DPMPP, "linspace", spare=True, exact=False),
    "HeunDiscreteScheduler": Solver(HEUN, "linspace", sigmas=True, exact=False),
    "LMSDiscreteScheduler": Solver(DDIM, "linspace", sigmas=True, exact=False),
    "EDMEulerScheduler": Solver(DDIM, "linspace", exact=False),
    "EDMDPMSolverMultistepScheduler": Solver(DPMPP, "linspace", exact=False, twists=DPM_TWIST),
    "LCMScheduler": Solver(ANCESTRAL, "leading", exact=False),
}
DEFAULTS: Mapping[str, Any] = {"clip_sample": True, "skip_prk_steps": False}
"""What diffusers takes where a file leaves an option out, where that is no value of `Solver.twists`."""


def scheduled(config: Mapping[str, Any], *, tokens: int, explicit: bool = False) -> Scheduled:
    """What a scheduler's file describes.

    tokens: how many the net sees of an image, for a dynamic shift; explicit: whether the family's pipeline
    gives the noise levels of a flow itself, from 1 to 1/n. Raises UserError for one of another process.
    """
    name = str(config.get("_class_name"))
    solver = SOLVERS.get(name)
    if solver is None:
        raise UserError(f"its scheduler, {name}, is not read; those that are: {', '.join(SOLVERS)}")
    if name.startswith("EDM"):
        return _levels(name, config, solver)
    flows = name.startswith("FlowMatch") or bool(config.get("use_flow_sigmas"))
    schedule = _flow(config, tokens, explicit) if flows else _chain(config, solver)
    kind = "flow_prediction" if flows else str(config.get("prediction_type", "epsilon"))
    if kind not in PREDICTIONS:
        raise UserError(f"its scheduler's prediction_type={kind} is none of {', '.join(PREDICTIONS)}")
    return Scheduled(schedule, PREDICTIONS[kind], solver.sampler, tuple(_notes(name, config, solver)))


def _levels(name: str, config: Mapping[str, Any], solver: Solver) -> Scheduled:
    """EDM: levels by Karras et al., eq. 5, for a net that predicts F at c_in x."""
    if config.get("prediction_type", "epsilon") != "epsilon":
        raise UserError(
            f"its scheduler, {name}, has prediction_type={config['prediction_type']}, not epsilon"
        )
    ends = float(config.get("sigma_min", 0.002)), float(config.get("sigma_max", 80.0))
    schedule = Levels(*ends, rho=float(config.get("rho", 7.0)))
    notes = _notes(name, config, solver)
    if config.get("sigma_schedule", "karras") != "karras":
        notes.append(f"{name} with sigma_schedule={config['sigma_schedule']} is walked with karras")
    told = float(config.get("sigma_data", 0.5))
    return Scheduled(schedule, "eps", solver.sampler, tuple(notes), sigma_data=told)


def _notes(name: str, config: Mapping[str, Any], solver: Solver) -> list[str]:
    target = str(solver.sampler["_target_"]).rpartition(".")[2]
    used = f"{target}(tau={solver.sampler['tau']:g})" if "tau" in solver.sampler else target
    found = [] if solver.exact else [f"{name} is not among our samplers: {used} walks its knots in its place"]
    for option, value in {**NO_TWIST, **solver.twists}.items():
        given = config.get(option, DEFAULTS.get(option, value))
        if given != value:
            found.append(f"{name} with {option}={given} is walked with {option}={value}, by {used}")
    if solver.sigmas and config.get("final_sigmas_type", "zero") != "zero":
        found.append(
            f"{name} ends at sigma_min in x/alpha, and {used} in x: the images are alpha times theirs"
        )
    uneven = config.get("timestep_spacing", solver.rule) == "linspace" and solver.rule == "leading"
    if uneven:
        found.append(f"{name} steps past its own knots with linspace; {used} goes from knot to knot")
    return found


def _chain(config: Mapping[str, Any], solver: Solver) -> Discrete:
    rule = config.get("timestep_spacing", solver.rule)
    if solver.sigmas or solver.spare:
        end = config.get("final_sigmas_type", "zero") == "zero"
    else:
        end = bool(config.get("set_alpha_to_one", solver.sampler is not PLMS))
    spacing = Spaced(
        rule=rule,
        offset=int(config.get("steps_offset", 0)),
        end="clean" if end else "first",
        spare=solver.spare and rule != "trailing",
        whole=not (solver.sigmas and rule == "linspace"),
        unit=not solver.sigmas or rule == "leading",
    )
    return _betas(config, spacing, last=2.0**-24 if solver.sigmas or solver.spare else 0.0)


def _betas(config: Mapping[str, Any], spacing: Spaced, *, last: float) -> Discrete:
    """The chain of a file; last: ᾱ_T where its noise is rescaled to have no signal left (Lin et al. 2023)."""
    steps, kind = int(config.get("num_train_timesteps", 1000)), config.get("beta_schedule", "linear")
    ends = {"beta_start": config.get("beta_start", 1e-4), "beta_end": config.get("beta_end", 0.02)}
    if config.get("trained_betas") is not None:
        chain = Discrete(torch.tensor(config["trained_betas"], dtype=torch.float64), spacing)
    elif kind == "linear":
        chain = Linear(steps, **ends, spacing=spacing)
    elif kind == "scaled_linear":
        chain = ScaledLinear(steps, **ends, spacing=spacing)
    elif kind == "squaredcos_cap_v2":
        chain = Cosine(steps, spacing=spacing)
    else:
        raise UserError(
            f"its scheduler's beta_schedule={kind} is none of linear, scaled_linear, squaredcos_cap_v2"
        )
    return _rescaled(chain, last) if config.get("rescale_betas_zero_snr") else chain


def _rescaled(chain: Discrete, last: float) -> Discrete:
    """√ᾱ shifted to 0 at T and rescaled so that its value at 1 is unchanged; then ᾱ_T = last."""
    root = chain.alpha_bar.sqrt()[1:]
    bars = ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()
    bars[-1] = last
    return Discrete(1 - bars / torch.cat([torch.ones(1, dtype=torch.float64), bars[:-1]]), chain.spacing)


def _flow(config: Mapping[str, Any], tokens: int, explicit: bool) -> Flow:
    if config.get("use_flow_sigmas"):
        steps = int(config.get("num_train_timesteps", 1000))
        return Flow(spacing=Shifted(float(config.get("flow_shift", 1.0)), high=1 - 1 / steps, whole=True))
    spacing = Shifted(float(config.get("shift", 1.0)))
    low = 1 / int(config.get("num_train_timesteps", 1000))
    if config.get("use_dynamic_shifting"):
        base = int(config.get("base_image_seq_len", 256)), float(config.get("base_shift", 0.5))
        most = int(config.get("max_image_seq_len", 4096)), float(config.get("max_shift", 1.15))
        linear = config.get("time_shift_type", "exponential") == "linear"
        spacing = Shifted(dynamic_shift(tokens, base=base, most=most, linear=linear))
    else:
        low = shifted(low, spacing.shift)  # its own lowest level is shifted once already
    return Flow(spacing=spacing if explicit else replace(spacing, low=low))
