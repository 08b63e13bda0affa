"""Where a student is called: its own states after k steps, or noised images at a knot."""

import pytest
import torch
from affine import gaussian, moments
from tiny_methods import drawn
from tiny_players import split, tiny_batch, tiny_players
from torch import nn

from lmsd.objectives.starts import _STREAM, aside, start
from lmsd.process import Flow
from lmsd.rng import Rng
from lmsd.sampling import Heun, Settings, Tau, begin, walk
from lmsd.types import Batch, Cond

FOUR = Settings(4, bound=None)


class Counted(nn.Module):
    """A generator that counts its calls and notes whether it was in eval mode."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.calls, self.modes = inner, 0, set()
        self.process, self.z_dim, self.bound = inner.process, inner.z_dim, inner.bound

    def forward(self, *inputs):
        self.calls += 1
        self.modes.add(self.training)
        return self.inner(*inputs)


def begun(starts, count, *, generator=None, batch=None, sampler=None, turn=0):
    generator = generator or tiny_players()["generator"]
    batch = batch or tiny_batch(6)
    rng = Rng(3, batch.position, turn=turn)
    with torch.no_grad():
        cond = generator.condition(batch)
    return start(starts, generator, batch, cond, rng, sampler=sampler or Tau(1.0), settings=FOUR, count=count)


@pytest.mark.parametrize("sampler", [Tau(0.0), Tau(1.0), Heun()], ids=lambda s: type(s).__name__)
def test_the_next_start_is_one_step_of_the_sampler_further(sampler):
    generator, batch = tiny_players(schedule=Flow())["generator"], tiny_batch(6)
    first, *later = (begun("own", k, generator=generator, sampler=sampler) for k in range(4))
    assert first.x_t.std() == pytest.approx(1.0, abs=0.2)
    own = aside(Rng(3, batch.position), _STREAM)  # to walk the path here by hand
    cond = generator.condition(batch)
    x = begin(generator, FOUR, own, batch.x.shape[1:], batch.x.dtype)
    assert torch.equal(first.x_t, x)
    steps = walk(generator, cond, None, x, sampler=sampler, settings=FOUR, rng=own)
    for found, step in zip(later, steps, strict=False):
        assert torch.equal(found.x_t, step.x_s)


def test_the_clock_decides_how_many_steps_come_first():
    generator = Counted(gaussian(4))
    batch = Batch(torch.zeros(5, 1, dtype=torch.float64), torch.arange(5))
    generator.train()
    rng = Rng(0, batch.position)
    for count in range(9):
        generator.calls = 0
        found = start("own", generator, batch, Cond(), rng, sampler=Tau(0), settings=FOUR, count=count)
        assert generator.calls == count % 4
        assert found.t.tolist() == [1 - count % 4 / 4] * 5
        assert found.s.tolist() == [0.75 - count % 4 / 4] * 5
    assert generator.modes == {False}
    assert generator.training


def test_its_own_states_have_the_moments_of_its_own_chain():
    """The last start, one step on, is what the chain samples: mean and deviation in closed form."""
    model, draws = gaussian(4, mean=0.6, std=0.5), drawn(4, tau=1.0)
    count = 40_000
    batch = Batch(torch.zeros(count, 1, dtype=torch.float64), torch.arange(count))
    found = start(
        "own", model, batch, Cond(), Rng(0, batch.position), sampler=Tau(1.0), settings=FOUR, count=3
    )
    x_0 = model(found.x_t, found.t, Cond()).detach()
    mean, variance = moments(model, draws)
    assert x_0.mean().item() == pytest.approx(mean.item(), abs=0.01)
    assert x_0.var().item() == pytest.approx(variance.item(), rel=0.03)


def test_noised_images_start_at_every_knot_but_the_last():
    batch = tiny_batch(64)
    found = begun("data", 0, batch=batch)
    knots = tiny_players()["generator"].process.schedule.knots(4, batch.x.device)
    assert set(found.t.tolist()) == set(knots[:-1].tolist())
    assert all(knots[knots.tolist().index(t) + 1] == s for t, s in zip(found.t, found.s, strict=True))
    clean = begun("data", 0, batch=Batch(0 * batch.x, batch.position, text=batch.text))
    alpha, _ = tiny_players()["generator"].process.alpha_sigma(found.t, batch.x)
    torch.testing.assert_close(found.x_t - clean.x_t, alpha * batch.x)


@pytest.mark.parametrize("starts", ["own", "data"])
def test_a_start_depends_on_its_own_sample_and_on_the_turn(starts):
    batch = tiny_batch(6)
    whole = begun(starts, 3)
    parts = [begun(starts, 3, batch=piece) for piece in split(batch, 2)]
    torch.testing.assert_close(whole.x_t, torch.cat([part.x_t for part in parts]), rtol=1e-12, atol=1e-12)
    assert torch.equal(whole.t, torch.cat([part.t for part in parts]))
    assert not torch.equal(whole.x_t, begun(starts, 3, turn=1).x_t)
