"""Paths with log-probabilities: the same as sampling's, exact, and the same again when recomputed."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence

from lmsd.errors import UserError
from lmsd.models.generator import Generator
from lmsd.process import EDM, Article, Flow, Linear, Process
from lmsd.rng import Rng
from lmsd.sampling import Policy, Sampler, Settings, Tau, log_prob, path_kl, sample, walk
from lmsd.types import Cond

SHAPE = (2, 3, 3)
STEPS = 4
SCHEDULES = {"linear": Linear(), "article": Article(), "edm": EDM(), "flow": Flow()}


class Net(nn.Module):
    """Linear, tanh, linear on image, time and z."""

    channels, image_size, token_dim, pooled_dim = SHAPE[0], SHAPE[1], 0, 0

    def __init__(self, z_dim=0):
        super().__init__()
        self.z_dim = z_dim
        self.inside = nn.Linear(math.prod(SHAPE) + 1 + z_dim, 32)
        self.outside = nn.Linear(32, math.prod(SHAPE))

    def forward(self, x, time, cond, z=None):
        parts = [x.flatten(1), time[:, None].to(x.dtype) / 1000, *([] if z is None else [z])]
        return self.outside(torch.tanh(self.inside(torch.cat(parts, dim=1)))).view_as(x)


def generator_of(schedule, z_dim=0, seed=0):
    torch.manual_seed(seed)
    edm = isinstance(schedule, EDM)
    return Generator(
        Net(z_dim),
        Process(schedule),
        prediction="x0",
        z_dim=z_dim,
        precondition="edm" if edm else "none",
    )


FREE = Settings(STEPS, bound=None)


def rolled(policy, generator, count=6, *, settings=FREE, **options):
    rng = Rng(3, torch.arange(count))
    return policy.rollout(generator, Cond(), settings=settings, rng=rng, shape=SHAPE, **options), rng


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_log_probabilities_are_those_of_torch_distributions(name, tau):
    """Mean and std of every step from the process itself (τ = 1) or the sampler's step, not from the path."""
    process = Process(SCHEDULES[name])
    generator = generator_of(SCHEDULES[name])
    path, rng = rolled(Policy(tau=tau, last_std=0.05), generator)
    assert path.steps == tuple(range(STEPS))
    assert path.x.dtype == path.log_prob.dtype == torch.float32
    knots = process.schedule.knots(STEPS, torch.device("cpu"))

    def denoise(x, t):
        return generator(x, t, Cond())

    for j, k in enumerate(path.steps):
        x_t, x_s = path.x[:, k].double(), path.x[:, k + 1].double()
        t, s = knots[k].expand(len(x_t)), knots[k + 1].expand(len(x_t))
        with torch.no_grad():
            x0 = generator(x_t.float(), t, Cond()).double()
        if tau == 1.0:
            law = process.posterior(x0, x_t, s, t)
            std = law.std.flatten()[0] if k < STEPS - 1 else torch.tensor(0.05).double()
            want = Independent(Normal(law.mean, std), 3)
        else:
            table = list(
                Tau(tau).path(
                    lambda level, here: denoise,
                    path.x[:, 0],
                    rng=rng,
                    process=process,
                    steps=STEPS,
                )
            )
            want = Independent(Normal(path.mean[:, j].double(), table[k].std or 0.05), 3)
        torch.testing.assert_close(path.log_prob[:, j].double(), want.log_prob(x_s), rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(path.mean[:, j].double(), want.mean, rtol=1e-4, atol=1e-4)


def test_kl_is_that_of_torch_distributions():
    mean, other = torch.randn(2, 5, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
    want = kl_divergence(Independent(Normal(mean, 0.3), 3), Independent(Normal(other, 0.3), 3))
    torch.testing.assert_close(path_kl(mean, other, 0.3), want)
    x = mean + 0.1
    torch.testing.assert_close(log_prob(x, mean, 0.3), Independent(Normal(mean, 0.3), 3).log_prob(x))


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_rollout_is_what_sampling_draws(name):
    generator = generator_of(SCHEDULES[name], z_dim=2)
    settings = Settings(STEPS, bound=0.2)
    path, rng = rolled(Policy(0.5), generator, settings=settings)
    made = sample(generator, Cond(), sampler=Tau(0.5), settings=settings, rng=rng, shape=SHAPE)
    assert torch.equal(path.images, made)
    assert path.steps == (0, 1, 2)  # the last one has no noise


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_the_ratio_begins_at_one(half):
    """Recomputed with gradients on: within 1e-4 in float32, and in bfloat16 with the same shape of batch."""
    generator = generator_of(Flow(), z_dim=2)
    policy = Policy(last_std=0.05)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        path, rng = rolled(policy, generator, 16)
        means = policy.means(generator, Cond(), None, settings=FREE, path=path, rng=rng)
    for j, (k, mean) in enumerate(zip(path.steps, means, strict=True)):
        assert mean.requires_grad
        ratio = (log_prob(path.x[:, k + 1], mean.float(), path.std[j]) - path.log_prob[:, j]).exp()
        assert (ratio - 1).abs().max() < 1e-4


def test_guidance_is_part_of_the_policy():
    generator = generator_of(Flow())
    generator.net.forward = lambda x, time, cond, z=None: cond.pooled[:, :, None, None].expand_as(x)
    one, two = (Cond(pooled=torch.full((6, 2), value)) for value in (1.0, 0.5))
    settings = Settings(1, guidance=3.0, bound=None)
    path = Policy(last_std=0.1).rollout(
        generator, one, two, settings=settings, rng=Rng(0, torch.arange(6)), shape=SHAPE
    )
    assert torch.allclose(path.mean, torch.tensor(0.5 + 3 * (1 - 0.5)))


def test_guidance_acts_in_a_rollout_where_it_does_in_sampling():
    """Within an interval of times, the same images to the bit, and other ones than with guidance all over."""
    generator = generator_of(Flow())
    plain = generator.net.forward
    generator.net.forward = lambda x, time, cond, z=None: plain(x, time, cond) + cond.pooled[:, :, None, None]
    one, two = (Cond(pooled=torch.full((6, 2), value)) for value in (1.0, 0.5))

    def drawn(interval):
        settings = Settings(STEPS, guidance=3.0, interval=interval, bound=None)
        draw = {"settings": settings, "rng": Rng(3, torch.arange(6)), "shape": SHAPE}
        path = Policy(0.5).rollout(generator, one, two, **draw)
        made = sample(generator, one, two, sampler=Tau(0.5), **draw)
        assert torch.equal(path.images, made)
        return made

    assert not torch.equal(drawn((0.4, 0.8)), drawn(None))


def test_outside_the_window_steps_are_deterministic_where_asked():
    generator = generator_of(Flow())
    window = (1, 2)
    mixed, _ = rolled(Policy(ode=True), generator, window=window)
    plain, _ = rolled(Policy(), generator, window=window)
    assert mixed.steps == plain.steps == window
    rng = Rng(3, torch.arange(6))
    for path, still in ((mixed, True), (plain, False)):
        steps = walk(generator, Cond(), None, path.x[:, 0], sampler=Tau(0.0), settings=FREE, rng=rng)
        assert torch.equal(path.x[:, 1], next(steps).x_s) == still


def test_a_path_does_not_depend_on_its_micro_batch():
    generator = generator_of(Flow(), z_dim=2)
    policy = Policy()
    whole, _ = rolled(policy, generator, 12)
    index = torch.tensor([4, 5, 6, 7])
    part = policy.rollout(generator, Cond(), settings=FREE, rng=Rng(3, index), shape=SHAPE)
    torch.testing.assert_close(part.x, whole.rows(index).x, rtol=0, atol=1e-6)
    torch.testing.assert_close(part.log_prob, whole.rows(index).log_prob, rtol=1e-5, atol=1e-4)


def test_a_policy_without_noise_is_refused():
    with pytest.raises(UserError, match="none of the steps"):
        rolled(Policy(tau=0.0), generator_of(Flow()))
    with pytest.raises(UserError, match=r"none of the steps \[3\]"):
        rolled(Policy(), generator_of(Flow()), window=(3,))
    with pytest.raises(UserError, match="last_std"):
        Policy(last_std=-1.0)


def test_a_policy_is_a_sampler():
    """Its own loop, the same paths: steps with their means, deviations and states."""
    generator = generator_of(Flow())
    policy, rng = Policy(last_std=0.05), Rng(3, torch.arange(6))
    path, _ = rolled(policy, generator)
    steps = list(walk(generator, Cond(), None, path.x[:, 0], sampler=policy, settings=FREE, rng=rng))
    for k, step in enumerate(steps):
        assert torch.equal(step.x_s, path.x[:, k + 1])
        assert torch.equal(step.mean, path.mean[:, k])
        assert step.std == path.std[k] > 0
    assert isinstance(policy, Sampler)


@pytest.mark.parametrize("std", [0, 0.0, -1.0, float("nan")])
@pytest.mark.parametrize("function", [log_prob, path_kl])
def test_a_step_without_noise_has_no_log_probability(function, std):
    with pytest.raises(UserError, match="a step without noise has no log-probability; give the policy tau"):
        function(torch.zeros(2, 3), torch.ones(2, 3), std)
