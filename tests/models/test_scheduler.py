"""Schedulers read from their files walk what diffusers' own walk: knots and end results."""

import math

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from lmsd.errors import UserError
from lmsd.models.scheduler import Scheduled, scheduled
from lmsd.process import Process, Spaced
from lmsd.process.knots import Shifted
from lmsd.rng import Rng
from lmsd.sampling import Sampler, spread
from lmsd.spec import build

RNG = Rng(7, torch.arange(2))
SHAPE = (2, 4, 4)
TOKENS = 1024
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
DPM = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
FLOW = "FlowMatchEulerDiscreteScheduler"
V = {"prediction_type": "v_prediction"}
ROWS = {
    "sd15": ("PNDMScheduler", SD | {"skip_prk_steps": True, "steps_offset": 1}),
    "sd15-ddim": ("DDIMScheduler", SD | {"clip_sample": False, "steps_offset": 1, "set_alpha_to_one": False}),
    "sd2-v": (
        "DDIMScheduler",
        SD | V | {"clip_sample": False, "steps_offset": 1, "set_alpha_to_one": False},
    ),
    "ddim-trailing": ("DDIMScheduler", SD | {"clip_sample": False, "timestep_spacing": "trailing"}),
    "ddim-zero-snr": ("DDIMScheduler", SD | V | ZERO_SNR | {"clip_sample": False}),
    "pndm-trailing": ("PNDMScheduler", SD | {"skip_prk_steps": True, "timestep_spacing": "trailing"}),
    "sdxl": ("EulerDiscreteScheduler", SD | {"timestep_spacing": "leading", "steps_offset": 1}),
    "sdxl-turbo": ("EulerDiscreteScheduler", SD | {"timestep_spacing": "trailing"}),
    "euler-linspace": ("EulerDiscreteScheduler", SD),
    "euler-first": ("EulerDiscreteScheduler", SD | {"final_sigmas_type": "sigma_min"}),
    "euler-zero-snr": ("EulerDiscreteScheduler", SD | V | ZERO_SNR),
    "pixart": ("DPMSolverMultistepScheduler", DPM),
    "dpm-leading": ("DPMSolverMultistepScheduler", SD | {"timestep_spacing": "leading", "steps_offset": 1}),
    "dpm-trailing": ("DPMSolverMultistepScheduler", SD | {"timestep_spacing": "trailing"}),
    "sd3": (FLOW, {"shift": 3.0}),
    "flux": (FLOW, {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}),
    "schnell": (FLOW, {"shift": 1.0}),
    "sana": (
        "DPMSolverMultistepScheduler",
        {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"},
    ),
}
EXPLICIT = ("flux", "schnell")


def net(x: Tensor, t: float) -> Tensor:
    """Some smooth function of x_t and the time index."""
    return torch.tanh(0.7 * x + 0.3 * math.cos(t / 300))


def mu(scheduler) -> float:
    own = scheduler.config
    slope = (own.max_shift - own.base_shift) / (own.max_image_seq_len - own.base_image_seq_len)
    return own.base_shift + slope * (TOKENS - own.base_image_seq_len)


def set_to(row: str, steps: int):
    """Their scheduler, set to `steps`."""
    name, config = ROWS[row]
    scheduler = getattr(diffusers, name)(**config)
    if row in EXPLICIT:
        shift = {"mu": mu(scheduler)} if scheduler.config.use_dynamic_shifting else {}
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), **shift)
    else:
        scheduler.set_timesteps(steps)
    return scheduler


def theirs(row: str, steps: int):
    """(their scheduler, set to `steps`; the end of its path)."""
    name, scheduler = ROWS[row][0], set_to(row, steps)
    sigma = 1.0 if name == FLOW else scheduler.init_noise_sigma
    x = sigma * RNG.normal(SHAPE, "x_T")
    for t in scheduler.timesteps:
        seen = x if name == FLOW else scheduler.scale_model_input(x, t)
        x = scheduler.step(net(seen, float(t)), t, x).prev_sample
    return scheduler, x


def read_of(row: str) -> Scheduled:
    name, config = ROWS[row]
    return scheduled({"_class_name": name, **config}, tokens=TOKENS, explicit=row in EXPLICIT)


def walked(read: Scheduled, steps: int) -> tuple[Tensor, list[float]]:
    """(the end of our path; the times that the net was told)."""
    process, told = Process(read.schedule), []

    def denoise(x, t):
        told.append(float(read.schedule.model_time(t)[0]))
        return process.to_x0(net(x, told[-1]), read.prediction, x, t)

    x = spread(read.schedule, steps) * RNG.normal(SHAPE, "x_T")
    sampler: Sampler = build(read.sampler)
    return sampler(denoise, x, RNG, process=process, steps=steps), told


@pytest.mark.parametrize("steps", [2, 20])
@pytest.mark.parametrize("row", ROWS)
def test_paths_are_theirs(row, steps):
    scheduler, end = theirs(row, steps)
    read = read_of(row)
    own, told = walked(read, steps)
    assert told == pytest.approx([float(t) for t in scheduler.timesteps], abs=1e-3)
    if row == "euler-first":  # theirs is x/alpha
        assert "ends at sigma_min" in read.notes[0]
        end = end * read.schedule(torch.tensor(1.0))[0]
    else:
        assert read.notes == ()
    # Theirs is float32, and begins at 4,096 where the last of the signal is taken away.
    torch.testing.assert_close(own, end, rtol=1e-6, atol=2e-4 if row == "euler-zero-snr" else 3e-5)


@pytest.mark.parametrize("row", ROWS)
def test_levels_are_theirs_at_every_number_of_steps(row):
    name, config = ROWS[row]
    for steps in [*range(1, 33), 50, 100]:
        scheduler = set_to(row, steps)
        if len(scheduler.timesteps) != steps + (name == "PNDMScheduler" and steps > 1):
            continue  # np.arange in steps that are no float64 has a point too many
        schedule = read_of(row).schedule
        grid = schedule.grid(steps)
        alpha, sigma, _ = schedule.coefficients(torch.tensor(grid, dtype=torch.float64))
        told = schedule.model_time(torch.tensor(grid[:-1])).double()
        assert sorted({*told.tolist()}) == pytest.approx(sorted({*scheduler.timesteps.tolist()}), abs=1e-3)
        if name not in ("PNDMScheduler", "DDIMScheduler"):
            flow = name == FLOW or "use_flow_sigmas" in config
            found = sigma if flow else sigma / alpha
            torch.testing.assert_close(found, scheduler.sigmas.double(), rtol=3e-5, atol=1e-7)


def test_the_double_shift_of_a_static_flow():
    grid = read_of("sd3").schedule.grid(4)
    assert grid == pytest.approx([1, 0.85769, 0.60215, 0.00893, 0], abs=1e-5)
    explicit = Shifted(math.exp(1.15))(4)
    assert explicit == pytest.approx([1, 0.90453, 0.75951, 0.51284, 0], abs=1e-5)


def test_a_planted_spacing_moves_the_end():
    own = walked(read_of("sd15"), 20)[0]
    for twist in ({"steps_offset": 0}, {"set_alpha_to_one": True}, {"timestep_spacing": "trailing"}):
        name, config = ROWS["sd15"]
        other = walked(scheduled({"_class_name": name, **config, **twist}, tokens=TOKENS), 20)[0]
        assert float((own - other).abs().max()) > 100 * 3e-5, twist


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"_class_name": "UniPCMultistepScheduler"},
            "is not among our samplers: DPM",
        ),
        (
            {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True},
            "use_karras_sigmas=True is",
        ),
        ({"_class_name": "PNDMScheduler"}, "with skip_prk_steps=False is walked with skip_prk_steps=True"),
        ({"_class_name": "DDIMScheduler"}, "with clip_sample=True is walked with clip_sample=False"),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, "solver_order=3 is walked with"),
        (
            {"_class_name": "EDMEulerScheduler"},
            "EDMEulerScheduler is not among our samplers: Tau(tau=0) walks its knots in its place",
        ),
        (
            {"_class_name": "EDMDPMSolverMultistepScheduler"},
            "EDMDPMSolverMultistepScheduler is not among our samplers: DPMSolverPP2M walks its knots",
        ),
    ],
)
def test_what_is_walked_otherwise_is_named(config, said):
    (note,) = scheduled(config, tokens=TOKENS).notes
    assert said in note


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"_class_name": "SCMScheduler"}, "its scheduler, SCMScheduler, is not read"),
        (
            {"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"},
            "EDMEulerScheduler, has prediction_type=v_prediction, not epsilon",
        ),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "sigmoid"}, "beta_schedule=sigmoid is none of"),
        ({"_class_name": "DDIMScheduler", "prediction_type": "noise"}, "prediction_type=noise is none of"),
    ],
)
def test_another_process_is_refused(config, said):
    with pytest.raises(UserError, match=said):
        scheduled(config, tokens=TOKENS)


def test_an_offset_beyond_the_chain_is_refused():
    with pytest.raises(UserError, match="steps lie at 1051 on a chain of 1000"):
        Spaced("leading", offset=300)(1000, 4)
    with pytest.raises(UserError, match="rule='lagging' is none of"):
        Spaced("lagging")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="the shift must be above 0"):
        Shifted(0.0)
