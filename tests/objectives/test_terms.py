import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lmsd.errors import UserError
from lmsd.objectives.base import mean_square
from lmsd.objectives.terms import (
    Annealed,
    difference_penalty,
    discriminator_loss,
    distance,
    energy_score,
    exact_penalty,
    generator_loss,
    sign_right,
)
from lmsd.rng import Rng


def draw(count, shape, tag, seed=0):
    return Rng(seed, torch.arange(count)).normal(shape, tag).double()


def smooth_critic(heads=1):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, heads)
    ).double()


def test_finite_difference_is_the_exact_penalty_within_one_percent():
    critic, draws = smooth_critic(), 2000
    x = draw(50, (6,), "x")
    exact, _ = exact_penalty(critic, x)
    rows = x.repeat(draws, 1)
    with torch.no_grad():
        base = critic(rows)
        for sigma in (0.01, 0.05):
            moved = critic(rows + sigma * draw(len(rows), (6,), f"n{sigma}"))
            estimate = difference_penalty(moved, base, sigma).mean()
            # 100,000 draws of a chi-squared: standard error 0.45 %, and the numbers are fixed
            assert estimate.item() == pytest.approx(exact.mean().item(), rel=0.01)


def test_exact_penalty_is_that_of_float32_under_autocast():
    critic, x = smooth_critic().float(), draw(50, (6,), "x").float()
    expected, _ = exact_penalty(critic, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert critic(x).dtype == torch.bfloat16
        found, logits = exact_penalty(critic, x)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def test_exact_penalty_of_a_quadratic_is_its_gradient_for_each_head():
    a, b = draw(6, (6,), "a"), draw(6, (6,), "b")
    x = draw(5, (6,), "x")

    def critic(x):
        return torch.stack([(x @ a * x).sum(1), (x @ b * x).sum(1)], dim=1)

    penalty, logits = exact_penalty(critic, x)
    expected = sum((x @ (m + m.T)).square().sum(1) for m in (a, b)) / 2
    torch.testing.assert_close(penalty, expected)
    torch.testing.assert_close(logits, critic(x))
    weights = torch.ones(6, dtype=torch.float64, requires_grad=True)
    exact_penalty(lambda x: (x.square() @ weights)[:, None], x)[0].sum().backward()  # Σ (2 w x)²
    torch.testing.assert_close(weights.grad, 8 * x.square().sum(0))


def test_gamma_is_two_lambda_sigma_squared():
    logits, moved = draw(9, (2,), "l"), draw(9, (2,), "m")
    lam, sigma = 100.0, 0.01
    gamma = 2 * lam * sigma**2
    assert gamma == pytest.approx(0.02)
    ours = 0.5 * gamma * difference_penalty(moved, logits, sigma)
    torch.testing.assert_close(ours, lam * (moved - logits).square().mean(1))


@pytest.mark.parametrize("std", [1.0, 0.6])
def test_relativistic_critic_recovers_the_log_density_ratio(std):
    """log N(x; 1, 1) − log N(x; 0, std²) = x + (1/std² − 1) x²/2 + const."""
    count = 200_000
    real, fake = 1 + draw(count, (1,), "real"), std * draw(count, (1,), "fake")
    weights = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)

    def logits(x):
        return torch.cat([x, x.square()], dim=1) @ weights

    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = discriminator_loss("relativistic", logits(real), logits(fake)).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    expected = torch.tensor([[1.0], [0.5 * (std**-2 - 1)]], dtype=torch.float64)
    torch.testing.assert_close(weights.detach(), expected, atol=0.04, rtol=0)


def test_losses_equal_their_cross_entropies():
    real, fake = draw(7, (3,), "r"), draw(7, (3,), "f")
    one, zero = torch.ones_like(real), torch.zeros_like(real)

    def bce(logit, target):
        return F.binary_cross_entropy_with_logits(logit, target, reduction="none").mean(1)

    torch.testing.assert_close(discriminator_loss("relativistic", real, fake), bce(real - fake, one))
    torch.testing.assert_close(generator_loss("relativistic", real, fake), bce(real - fake, zero))
    both = bce(real, one) + bce(fake, zero)
    torch.testing.assert_close(discriminator_loss("nonsaturating", real, fake), both)
    torch.testing.assert_close(generator_loss("nonsaturating", real, fake), bce(fake, one))


def test_hinge_by_hand():
    real, fake = torch.tensor([[2.0], [0.5], [-1.0]]), torch.tensor([[-3.0], [0.5], [2.0]])
    assert discriminator_loss("hinge", real, fake).tolist() == [0.0, 2.0, 5.0]
    assert generator_loss("hinge", real, fake).tolist() == [3.0, -0.5, -2.0]


def test_sign_right():
    real, fake = torch.tensor([[2.0], [2.0], [-3.0]]), torch.tensor([[1.0], [-1.0], [-2.0]])
    assert sign_right("relativistic", real, fake).tolist() == [1.0, 1.0, 0.0]
    assert sign_right("nonsaturating", real, fake).tolist() == [0.5, 1.0, 0.5]


def test_energy_is_least_at_the_true_posterior_and_the_square_at_its_mean():
    """x₀ = ±1 evenly and x̂ = ±a: exact expectations over all signs."""
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)
    spread = torch.linspace(0, 2, 81, dtype=torch.float64)
    energy, square = [], []
    for a in spread:
        first, second, x_0 = (column[:, None] for column in (a * signs[:, 0], a * signs[:, 1], signs[:, 2]))
        energy.append(energy_score(first, second, x_0).mean())
        square.append(mean_square(first - x_0).mean())
    assert spread[torch.stack(energy).argmin()] == 1.0
    assert spread[torch.stack(square).argmin()] == 0.0


def test_distance_is_root_mean_square_and_flat_where_it_is_zero():
    x, y = draw(4, (2, 3, 3), "x"), draw(4, (2, 3, 3), "y")
    torch.testing.assert_close(distance(x, y), mean_square(x - y).sqrt())
    x.requires_grad_()
    distance(x, x.detach().clone()).sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_annealed_goes_by_a_half_cosine():
    weight = Annealed([1.0, 0.2])
    assert [weight(u) for u in (-1, 0, 0.5, 1, 2)] == pytest.approx([1.0, 1.0, 0.6, 0.2, 0.2])
    assert weight(0.25) == pytest.approx(0.2 + 0.8 * math.cos(math.pi / 8) ** 2)
    assert Annealed(0.3)(0.7) == pytest.approx(0.3)
    with pytest.raises(UserError, match="pair"):
        Annealed([1.0, 0.5, 0.1])
