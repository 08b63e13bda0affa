"""Our samplers against diffusers' schedulers, whole paths step by step, with the same net and the same noise.

diffusers holds its tables in float32, ours are float64, so paths agree to 5e-6 (to 1/alpha_T as much where x̂0
comes from eps; not compared for cosine, where that is 20,000).
"""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers import scheduling_ddpm
from torch import Tensor

from lmsd.process import Cosine, Flow, Linear, Process, ScaledLinear
from lmsd.rng import Rng
from lmsd.sampling import DPMSolverPP2M, Tau
from lmsd.types import Prediction

RNG = Rng(7, torch.arange(3))
SHAPE = (2, 4, 4)
CHAINS = {
    "linear": (Linear(), {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}),
    "scaled_linear": (
        ScaledLinear(),
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    ),
    "cosine": (Cosine(), {"beta_schedule": "squaredcos_cap_v2"}),
}
KINDS: dict[Prediction, str] = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


def net(x: Tensor, t: Tensor | float) -> Tensor:
    """Some smooth function of x_t and the time index."""
    return torch.tanh(0.7 * x + 0.3 * torch.cos(torch.as_tensor(t) / 300).reshape(-1, *[1] * (x.ndim - 1)))


def ours(sampler, schedule, kind: Prediction, steps: int) -> list[Tensor]:
    process = Process(schedule)

    def denoise(x, t):
        return process.to_x0(net(x, schedule.model_time(t)), kind, x, t)

    x = RNG.normal(SHAPE, "x_T")
    return [
        step.x_s
        for step in sampler.path(lambda level, here: denoise, x, rng=RNG, process=process, steps=steps)
    ]


def theirs(scheduler) -> list[Tensor]:
    x, path = RNG.normal(SHAPE, "x_T"), []
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, float(t)), t, x).prev_sample
        path.append(x)
    return path


def assert_same_path(path: list[Tensor], other: list[Tensor], *, atol: float) -> None:
    assert len(path) == len(other)
    for step, (x, y) in enumerate(zip(path, other, strict=True)):
        torch.testing.assert_close(x, y, rtol=0, atol=atol, msg=lambda m, step=step: f"step {step}: {m}")


def tolerance(kind: Prediction, chain: str) -> float:
    return 1e-5 if kind != "eps" else 5e-4 if chain == "linear" else 1e-4


@pytest.mark.parametrize(
    ("chain", "kind"),
    [(chain, kind) for chain in CHAINS for kind in KINDS if (chain, kind) != ("cosine", "eps")],
)
@pytest.mark.parametrize("steps", [10, 50])
def test_tau_zero_is_ddim(chain, kind, steps):
    schedule, betas = CHAINS[chain]
    scheduler = DDIMScheduler(
        **betas, prediction_type=KINDS[kind], timestep_spacing="trailing", clip_sample=False
    )
    scheduler.set_timesteps(steps)
    assert_same_path(ours(Tau(0), schedule, kind, steps), theirs(scheduler), atol=tolerance(kind, chain))


@pytest.mark.parametrize("chain", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize("kind", ["x0", "v"])
@pytest.mark.parametrize("steps", [10, 50])
def test_tau_one_is_ddpm(chain, kind, steps, monkeypatch):
    schedule, betas = CHAINS[chain]
    scheduler = DDPMScheduler(
        **betas, prediction_type=KINDS[kind], timestep_spacing="trailing", clip_sample=False
    )
    scheduler.set_timesteps(steps)
    counter = iter(range(steps))
    monkeypatch.setattr(
        scheduling_ddpm, "randn_tensor", lambda *_, **__: RNG.at(next(counter)).normal(SHAPE, "step")
    )
    assert_same_path(ours(Tau(1), schedule, kind, steps), theirs(scheduler), atol=1e-5)


@pytest.mark.parametrize("chain", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize("kind", ["x0", "v"])
@pytest.mark.parametrize("steps", [5, 20])
def test_dpm_solver_2m_is_theirs(chain, kind, steps):
    schedule, betas = CHAINS[chain]
    scheduler = DPMSolverMultistepScheduler(
        **betas,
        prediction_type=KINDS[kind],
        timestep_spacing="trailing",
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(steps)
    assert_same_path(ours(DPMSolverPP2M(), schedule, kind, steps), theirs(scheduler), atol=1e-5)


@pytest.mark.parametrize("steps", [1, 4, 28])
def test_tau_zero_on_a_flow_is_their_euler(steps):
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    assert_same_path(ours(Tau(0), Flow(), "velocity", steps), theirs(scheduler), atol=5e-6)
