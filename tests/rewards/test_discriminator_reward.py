"""The discriminator as a reward: its gauge, its unit, its cap, its heads."""

import math
from dataclasses import replace

import pytest
import torch

from lmsd.errors import UserError
from lmsd.models.conditioner import LabelConditioner
from lmsd.process import Flow, Process
from lmsd.rewards import DiscriminatorReward, fit_temperature
from lmsd.types import Batch


class Critic(torch.nn.Module):
    """Logits: scale · mean of x + a number of the caption's own, a head for each scale."""

    marginal = True

    def __init__(self, scales=(1.0,), gauge=0.0):
        super().__init__()
        self.scales, self.gauge, self.seen = torch.tensor(scales), gauge, []

    def forward(self, x_s, x_t, s, t, cond):
        self.seen.append((x_s, s))
        value = x_s.flatten(1).mean(1, keepdim=True) * self.scales
        return value + self.gauge * cond.label[:, None].to(value)


class Player(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.process, self.conditioner = Process(Flow()), LabelConditioner(5, 2)

    def condition(self, batch, drop=None):
        return self.conditioner(batch, drop)


def setting(critic, count=8, group=4):
    label = torch.arange(count) // group
    batch = Batch(
        torch.zeros(count, 1, 2, 2), torch.arange(count), label=label, extra={"group": label * group}
    )
    return batch, {"generator": Player(), "discriminator": critic}


IMAGES = torch.linspace(-1, 1, 8)[:, None, None, None].expand(8, 1, 2, 2)


def test_the_temperature_is_that_of_the_pairs():
    """Gaps whose sign is right with probability σ(k·gap): logistic regression's own optimum, by its slope."""
    draw = torch.Generator().manual_seed(0)
    size = 3 * torch.rand(200_000, generator=draw).double()
    for k in (0.5, 2.0):
        right = torch.rand(len(size), generator=draw) < torch.sigmoid(k * size)
        found = fit_temperature(torch.where(right, size, -size))
        assert found == pytest.approx(k, rel=0.03)
    assert fit_temperature(torch.ones(10)) == pytest.approx(20.0, rel=1e-3)  # bounded where all is right


def test_calibration_undoes_a_flattened_judge():
    """A judge whose logits are a third of the log-ratio gets them back, and the cap with them."""
    draw = torch.Generator().manual_seed(0)
    n = 20_000
    # N(1,1) against N(0,1): the log-ratio is x − ½; the critic says a third of it.
    real, fake = 1 + torch.randn(n, generator=draw), torch.randn(n, generator=draw)
    batch = Batch(real.view(n, 1, 1, 1), torch.arange(n), label=torch.zeros(n, dtype=torch.int64))
    players = {"generator": Player(), "discriminator": Critic((1 / 3,))}
    reward = DiscriminatorReward()
    assert reward.calibrate(fake.view(n, 1, 1, 1), batch, players) == pytest.approx(3.0, rel=0.1)
    assert reward.margin == pytest.approx(1.0, rel=0.1)  # median of x − y
    again = DiscriminatorReward()
    again.load_state_dict(reward.state_dict())
    assert (again.temperature, again.margin) == (reward.temperature, reward.margin)


def test_the_cap_is_a_margin_over_the_groups_mean_whatever_the_gauge():
    scores = []
    for gauge in (0.0, 7.0):
        batch, players = setting(Critic(gauge=gauge))
        reward = DiscriminatorReward()
        free = reward(IMAGES, batch, players)
        assert torch.equal(free, reward.logits(IMAGES, batch, players))  # no cap before a calibration
        reward.margin = 0.1
        capped = reward(IMAGES, batch, players)
        mean = free.view(2, 4).mean(1, keepdim=True)
        torch.testing.assert_close(capped.view(2, 4), free.view(2, 4).minimum(mean + 0.1))
        scores.append(capped.view(2, 4) - mean)
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-5)


def test_rewards_have_an_origin_that_no_gauge_moves():
    """Real held-out images are at 0 nats; a judge with another number for the caption says the same."""
    found = []
    for gauge in (0.0, 7.0):
        batch, players = setting(Critic(gauge=gauge), group=8)
        batch = replace(batch, label=torch.ones(8, dtype=torch.int64))
        real = replace(batch, x=IMAGES.flip(0).roll(1, 0) + 0.5)
        reward = DiscriminatorReward(saturate=False)
        reward.calibrate(IMAGES, real, players)
        assert float(reward(real.x, batch, players).mean()) == pytest.approx(0.0, abs=1e-4)
        again = DiscriminatorReward(saturate=False)
        again.load_state_dict(reward.state_dict())
        assert torch.equal(again(IMAGES, batch, players), reward(IMAGES, batch, players))
        found.append(reward(IMAGES, batch, players))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_heads_that_disagree_cost():
    batch, players = setting(Critic((1.0, 2.0, 3.0)))
    found = DiscriminatorReward(ensemble=0.5, saturate=False)(IMAGES, batch, players)
    x = IMAGES[:, 0, 0, 0]
    torch.testing.assert_close(found, 2 * x - 0.5 * x.abs())


def test_levels_are_judged_with_the_same_noise_for_the_same_place():
    critic = Critic()
    batch, players = setting(critic)
    reward = DiscriminatorReward(levels=(0.0, 0.3), saturate=False)
    first, second = reward(IMAGES, batch, players), reward(IMAGES, batch, players)
    assert torch.equal(first, second)
    (clean, zero), (noisy, s) = critic.seen[:2]
    assert torch.equal(clean, IMAGES)
    assert (zero.unique().tolist(), s.unique().tolist()) == ([0.0], [pytest.approx(0.3)])
    eps = (noisy - 0.7 * IMAGES) / 0.3
    assert abs(float(eps.mean())) < 0.6
    assert eps.std() == pytest.approx(1, abs=0.4)


def test_it_climbs_through_the_judge():
    batch, players = setting(Critic())
    leaf = IMAGES.clone().requires_grad_()
    (slope,) = torch.autograd.grad(DiscriminatorReward(saturate=False)(leaf, batch, players).sum(), leaf)
    torch.testing.assert_close(slope, torch.full_like(slope, 0.25))


def test_judges_that_cannot_be_are_refused():
    batch, players = setting(Critic())
    with pytest.raises(UserError, match="init_from="):
        DiscriminatorReward()(IMAGES, batch, {"generator": players["generator"]})
    players["discriminator"].marginal = False
    with pytest.raises(UserError, match="marginal pairing"):
        DiscriminatorReward()(IMAGES, batch, players)
    with pytest.raises(UserError, match="levels"):
        DiscriminatorReward(levels=())
    assert math.isinf(DiscriminatorReward().margin)
