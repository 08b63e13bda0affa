"""The discriminator as the reward of a few-step student, exactly: three arms in one dimension.

    D, reference frozen                p₀ exp(D/β),  D = log p_data/p₀:     p₀^{1−1/β} p_data^{1/β}
    D refreshed, reference fixed       D = log p_data/p:                    p₀^{β/(1+β)} p_data^{1/(1+β)}
    both renewed                       p ← p (p_data/p)^{1/β}:              p_data, if and only if β > ½

For normal laws of one deviation these are the means m/β, m/(1+β), and m with an error that each round
multiplies by 1 − 1/β. First as maps of densities, then as what distillation with a tilt learns.
"""

import math

import pytest
import torch
from affine import Clock
from gaussian_players import ExactFake, Normal, Student, log_density, numbers

from lmsd.objectives import Distill, Heads, Matching, Tilt
from lmsd.process import Uniform
from lmsd.rng import Rng
from lmsd.sampling import Settings, Tau

GRID = torch.linspace(-12, 14, 26_001, dtype=torch.float64)
DATA, STD = 0.5, 0.8
BETAS = (0.3, 0.5, 1.0, 2.0, 4.0)


def log_normal(mean):
    return -0.5 * ((GRID - mean) / STD) ** 2


def normalized(log_p):
    return log_p - torch.logsumexp(log_p, 0)


def mean_of(log_p):
    return float((normalized(log_p).exp() * GRID).sum())


@pytest.mark.parametrize("beta", BETAS)
def test_frozen_judge_and_reference_are_best_at_one_nat(beta):
    found = log_normal(0.0) + (log_normal(DATA) - log_normal(0.0)) / beta
    assert mean_of(found) == pytest.approx(DATA / beta, abs=1e-6)


@pytest.mark.parametrize("beta", BETAS)
def test_a_judge_that_keeps_up_meets_the_reference_in_the_middle(beta):
    """The fixed point of p = p₀ exp(D/β), D = log p_data/p; damped, since undamped it leaves for β < 1."""
    p = log_normal(0.0)
    for _ in range(200):
        p = p + 0.2 * (normalized(log_normal(0.0) + (log_normal(DATA) - p) / beta) - p)
    assert mean_of(p) == pytest.approx(DATA / (1 + beta), abs=1e-6)
    wanted = (beta * log_normal(0.0) + log_normal(DATA)) / (1 + beta)
    torch.testing.assert_close(normalized(p), normalized(wanted), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("beta", BETAS)
def test_renewing_both_ends_at_the_data_above_half_a_nat(beta):
    p, errors = log_normal(0.0), []
    for _ in range(12):
        p = normalized(p + (log_normal(DATA) - p) / beta)
        errors.append(mean_of(p) - DATA)
    if beta == 1.0:
        assert abs(errors[0]) < 1e-6
        return
    assert errors[1] / errors[0] == pytest.approx(1 - 1 / beta, rel=1e-4)
    assert (abs(errors[-1]) < 0.9 * abs(errors[0])) == (beta > 0.5)


# -- the same by distillation ------------------------------------------------------------------------------


class Told(ExactFake):
    """Heads that know log p_data/p for the law p that `of` names, whatever the score has learned."""

    def __init__(self, mean, of):
        super().__init__(mean, STD)
        self.of = of

    def forward(self, x_t, t, cond, z=None, *, output="x0"):
        at = t.double()[:, None]
        told = log_density(x_t, DATA, STD, at) - log_density(x_t, *self.of(), at)
        return self.score(x_t, t, cond), told


def distilled(beta, *, reference=0.0, refreshed=False, steps=800, rate=0.04):
    """The student's (mean, deviation) after distillation of N(reference, STD²) with D as a reward.

    refreshed: D is log p_data/p for the student's law p; else for the reference.
    """
    student = Student(STD, reference)

    def law():
        return (student.second.detach(), student.first.detach().abs()) if refreshed else (reference, STD)

    cast = {
        "generator": student,
        "fake": Told(reference, law),
        "teacher": Normal(reference, math.log(STD)),
    }
    objective = Distill(
        Uniform(), sampler=Tau(0.0), settings=Settings(1, bound=None), heads=Heads(0.0, fake=1e-3),
        matching=Matching(weighting="none"), tilt=Tilt(beta), every=1,
    )  # fmt: skip
    rates = {"fake": rate, "generator": rate / 3}
    optimizers = {role: torch.optim.Adam(cast[role].parameters(), lr=rates[role]) for role in rates}
    tail = []
    for step in range(steps):
        batch = numbers(512, 512 * step)
        for turn in objective.turns(cast, batch, Clock(step), Rng(0, batch.position)):
            for name, player in cast.items():
                player.requires_grad_(name == turn.player)
                player.zero_grad()
            optimizers[turn.player].param_groups[0]["lr"] = rates[turn.player] * (1 - step / steps)
            turn.loss().value.backward()
            optimizers[turn.player].step()
        tail.append((student.second.item(), student.first.abs().item()))
    return torch.tensor(tail[-steps // 10 :]).mean(0).tolist()


@pytest.mark.parametrize(
    ("beta", "refreshed", "reference", "mean"),
    [
        (1.0, False, 0.0, DATA),
        (0.5, True, 0.0, DATA / 1.5),
        (2.0, False, 0.2, 0.2 + 0.3 / 2),  # one round of renewing both, from N(0.2, STD²)
    ],
)
def test_a_tilted_student_has_the_law_of_its_arm(beta, refreshed, reference, mean):
    found, std = distilled(beta, reference=reference, refreshed=refreshed)
    assert found == pytest.approx(mean, abs=0.03)
    assert std == pytest.approx(STD, abs=0.03)
