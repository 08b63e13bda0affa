"""FD-loss: the distance in closed form, its gradient, and moments that are remembered."""

import pytest
import torch
from torch import nn

from lmsd.errors import UserError
from lmsd.metrics.frechet import frechet_from_statistics
from lmsd.models.conditioner import NullConditioner
from lmsd.objectives import FDLoss
from lmsd.objectives.fd_loss import Moments, frechet
from lmsd.process import Flow, Process
from lmsd.rng import Rng
from lmsd.types import Batch, Clock


def covariance(d, seed):
    root = torch.randn(d, d + 2, generator=torch.Generator().manual_seed(seed)).double()
    return root @ root.T / d


def test_it_is_the_distance_that_evaluation_reports():
    mean, other = torch.randn(2, 5, generator=torch.Generator().manual_seed(3)).double()
    a, b = covariance(5, 1), covariance(5, 2)
    assert frechet(mean, a, other, b).item() == pytest.approx(frechet_from_statistics(mean, a, other, b))


def test_of_two_gaussians_in_one_dimension():
    """(μ − μ*)² + (σ − σ*)²."""
    found = frechet(*(torch.tensor(v).double() for v in ([2.0], [[9.0]], [0.5], [[4.0]])))
    assert found.item() == pytest.approx(1.5**2 + 1.0)


def test_at_equal_moments_there_is_no_gradient_and_elsewhere_the_closed_forms():
    mean, cov = torch.zeros(4).double().requires_grad_(), covariance(4, 1).requires_grad_()
    frechet(mean, cov, mean.detach(), cov.detach()).backward()
    assert mean.grad.abs().max() == 0
    assert cov.grad.abs().max() < 1e-10
    variance = torch.tensor([[9.0]]).double().requires_grad_()
    frechet(
        torch.zeros(1).double(), variance, torch.zeros(1).double(), torch.tensor([[4.0]]).double()
    ).backward()
    assert variance.grad.item() == pytest.approx(1 - 2 / 3)  # d/dσ² (σ − σ*)² = 1 − σ*/σ


def test_a_dead_feature_costs_no_digits():
    cov = covariance(4, 1)
    cov[3], cov[:, 3] = 0, 0
    mine = cov.clone().requires_grad_()
    frechet(torch.zeros(4).double(), mine, torch.zeros(4).double(), covariance(4, 2)).backward()
    assert mine.grad.isfinite().all()


class Affine(nn.Module):
    """x̂₀ = a + b x_T."""

    z_dim, bound = 0, None

    def __init__(self):
        super().__init__()
        self.process, self.conditioner = Process(Flow()), NullConditioner()
        self.a, self.b = (nn.Parameter(torch.tensor(v).double()) for v in (0.0, 1.0))

    def condition(self, batch, drop=None):
        return self.conditioner(batch, drop)

    def decode(self, x):
        return x

    def forward(self, x, t, cond, z=None):
        return self.a + self.b * x


def batch_at(step, size=200):
    position = torch.arange(step * size, (step + 1) * size)
    return Batch(0.5 + 0.7 * Rng(1, position).normal((1, 1, 1), "x").double(), position)


def updated(objective, generator, step, rate=0.2):
    batch, clock = batch_at(step), Clock(1, "generator")
    for turn in objective.turns({"generator": generator}, batch, clock, Rng(3, batch.position)):
        generator.zero_grad()
        loss = turn.loss()
        loss.value.backward()
        with torch.no_grad():
            for p in generator.parameters():
                p -= rate * p.grad
    return loss


def pixels(images):
    return images.flatten(1)


def test_it_finds_the_mean_and_deviation_of_the_data():
    objective, generator = FDLoss(pixels, decay=0.5), Affine()
    losses = [updated(objective, generator, step).value.item() for step in range(80)]
    assert losses[0] == pytest.approx(0.5**2 + 0.3**2, abs=0.1)
    assert generator.a.item() == pytest.approx(0.5, abs=0.05)
    assert generator.b.item() == pytest.approx(0.7, abs=0.05)


def test_moments_are_running_means_and_survive_a_restart():
    moments, rows = Moments(), torch.randn(8, 2).double()
    moments.keep(moments.blended(rows, 0.9))
    moments.keep(moments.blended(3 * rows, 0.9))
    torch.testing.assert_close(moments.mean, (0.9 + 0.3) * rows.mean(0))
    torch.testing.assert_close(moments.second, (0.9 + 0.1 * 9) * rows.T @ rows / 8)
    whole, broken = ((FDLoss(pixels), Affine()) for _ in range(2))
    for step in range(4):
        if step == 2:
            later = FDLoss(pixels)
            later.load_state_dict(broken[0].state_dict())
            broken = (later, broken[1])
        for objective, generator in (whole, broken):
            updated(objective, generator, step)
    assert torch.equal(whole[1].a, broken[1].a)
    assert torch.equal(whole[0].fake.second, broken[0].fake.second)


def test_accumulation_and_bad_options_are_refused():
    objective, players, rng = FDLoss(pixels), {"generator": Affine()}, Rng(0, batch_at(0).position)
    scripts = [objective.turns(players, batch_at(0), Clock(1, "generator"), rng) for _ in range(2)]
    next(scripts[0])
    with pytest.raises(UserError, match="set micro_batches=1"):
        next(scripts[1])
    with pytest.raises(UserError, match="decay=1"):
        FDLoss(pixels, decay=1.0)


def test_a_batch_that_is_not_finite_is_not_remembered():
    objective, generator = FDLoss(pixels, decay=0.5), Affine()
    updated(objective, generator, 0)
    mean, second = objective.fake.mean.clone(), objective.real.second.clone()
    for where in ("images", "samples"):
        batch = batch_at(1)
        if where == "images":
            batch.x[3] = torch.nan
        else:
            generator.a.data.fill_(torch.inf)
        for turn in objective.turns(
            {"generator": generator}, batch, Clock(1, "generator"), Rng(3, batch.position)
        ):
            assert not turn.loss().value.isfinite()
        assert torch.equal(objective.fake.mean, mean)
        assert torch.equal(objective.real.second, second)
