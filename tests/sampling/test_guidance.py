"""Guidance against its formula, the passes that it saves, and the one entry point."""

import pytest
import torch

from lmsd.errors import UserError
from lmsd.process import EDM, Article, Flow, Process
from lmsd.rng import Rng
from lmsd.sampling import DPMSolverPP2M, Heun, Settings, Tau, guided, sample
from lmsd.sampling.guidance import Weaker
from lmsd.types import Cond

COND, NULL = Cond(pooled=torch.full((4, 1), 2.0)), Cond(pooled=torch.full((4, 1), -1.0))


class Linearized:
    bound = 1.0

    """x̂0 = x_t/2 + c + mean(z), with every call noted."""

    def __init__(self, process: Process, z_dim: int = 0) -> None:
        self.process, self.z_dim = process, z_dim
        self.calls: list[tuple[float, float]] = []
        self.latents: list[torch.Tensor] = []

    def __call__(self, x_t, t, cond, z=None, *, output="x0"):
        self.calls.append((float(t[0]), float(cond.pooled[0])))
        if self.z_dim:
            self.latents.append(z)
            x_t = x_t + z.mean(1, keepdim=True)
        return x_t / 2 + cond.pooled


def draw(generator, steps=4, sampler=None, **options):
    rng = Rng(1, torch.arange(4))
    return sample(
        generator, COND, NULL, sampler=sampler or Tau(0), rng=rng, shape=(1,),
        settings=Settings(steps, **{"bound": None, **options}),
    )  # fmt: skip


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0, torch.tensor([0.0, 1.0, 2.0, 7.5])])
def test_guidance_is_its_formula(scale):
    x, t = torch.randn(4, 1, generator=torch.Generator().manual_seed(0)), torch.full((4,), 0.5)
    got = guided(Linearized(Process(Flow())), COND, NULL, scale=scale)(x, t)
    free, bound = x / 2 - 1, x / 2 + 2
    weight = scale[:, None] if isinstance(scale, torch.Tensor) else scale
    torch.testing.assert_close(got, free + weight * (bound - free))


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_autoguidance_leads_away_from_the_weaker_model_of_the_same_caption(scale):
    """Karras et al. 2024: with two linear denoisers x/2 + 2 and (x + 1)/2 + 2 the formula by hand."""
    strong, weak = Linearized(Process(Flow())), Linearized(Process(Flow()))
    x, t = torch.randn(4, 1, generator=torch.Generator().manual_seed(0)), torch.full((4,), 0.5)
    away = Weaker(weak, Cond(pooled=torch.full((4, 1), 2.5)))
    got = guided(strong, COND, away, scale=scale)(x, t)
    torch.testing.assert_close(got, (x / 2 + 2.5) + scale * ((x / 2 + 2) - (x / 2 + 2.5)))
    assert weak.calls == [(0.5, 2.5)]
    assert strong.calls == [(0.5, 2.0)]


def test_scale_of_images_is_per_sample():
    scale = torch.tensor([1.0, 4.0])
    cond, null = Cond(pooled=torch.ones(2, 1, 1, 1)), Cond(pooled=torch.zeros(2, 1, 1, 1))
    got = guided(Linearized(Process(Flow())), cond, null, scale=scale)(torch.zeros(2, 3, 5, 5), torch.ones(2))
    assert torch.equal(got, scale.view(2, 1, 1, 1).expand(2, 3, 5, 5))


def test_scale_one_skips_the_free_pass():
    plain, both = Linearized(Process(Flow())), Linearized(Process(Flow()))
    draw(plain)
    assert plain.calls == [(t, 2.0) for t in (1.0, 0.75, 0.5, 0.25)]
    draw(both, guidance=2.0)
    assert both.calls == [(t, c) for t in (1.0, 0.75, 0.5, 0.25) for c in (-1.0, 2.0)]


def test_a_scale_of_ones_per_sample_is_no_guidance():
    one = draw(Linearized(Process(Flow())))
    ones = draw(Linearized(Process(Flow())), guidance=torch.ones(4))
    torch.testing.assert_close(one, ones)


def test_interval_guides_only_the_steps_inside():
    generator = Linearized(Process(Flow()))
    draw(generator, guidance=3.0, interval=(0.3, 0.75))
    free = [t for t, c in generator.calls if c == -1.0]
    assert free == [0.75, 0.5]
    outside = draw(Linearized(Process(Flow())), guidance=3.0, interval=(0.1, 0.2))
    assert torch.equal(outside, draw(Linearized(Process(Flow()))))


def test_interval_of_edm_is_in_sigma():
    generator = Linearized(Process(EDM()))
    draw(generator, steps=8, guidance=3.0, interval=(0.1, 10.0))
    knots = EDM().grid(8)
    assert [t for t, c in generator.calls if c == -1.0] == pytest.approx(
        [k for k in knots if 0.1 <= k <= 10.0]
    )


def test_guidance_without_a_null_condition_is_refused():
    rng, generator = Rng(1, torch.arange(4)), Linearized(Process(Flow()))
    with pytest.raises(UserError, match="null condition"):
        sample(generator, COND, sampler=Tau(0), settings=Settings(2, guidance=2.0), rng=rng, shape=(1,))
    sample(generator, COND, sampler=Tau(0), settings=Settings(2), rng=rng, shape=(1,))


@pytest.mark.parametrize("sampler", [Tau(1), Heun(), DPMSolverPP2M()], ids=lambda s: type(s).__name__)
def test_sampling_starts_from_scaled_noise_and_ends_in_the_data(sampler):
    """Each sampler through the entry point against its loop by hand, with the end's own scale of 80."""
    process, rng = Process(EDM()), Rng(1, torch.arange(4))

    def denoise(x, t):
        return x / 2 + 2

    expected = sampler(denoise, 80 * rng.normal((1,), "x_T"), rng, process=process, steps=6)
    assert torch.equal(draw(Linearized(process), steps=6, sampler=sampler), expected)


def test_latents_are_fresh_in_each_step_and_shared_within_it():
    generator = Linearized(Process(Article()), z_dim=3)
    draw(generator, sampler=Heun(), guidance=2.0)
    rng = Rng(1, torch.arange(4))
    steps = [latents for k in range(4) for latents in [rng.at(k).normal((3,), "z")] * (2 if k == 3 else 4)]
    assert len(generator.latents) == len(steps) == 14
    assert all(torch.equal(got, want) for got, want in zip(generator.latents, steps, strict=True))


def test_sampling_builds_no_graph():
    w = torch.ones(4, 1, requires_grad=True)
    rng = Rng(1, torch.arange(4))
    settings = Settings(2)
    x = sample(
        Linearized(Process(Flow())), Cond(pooled=w), sampler=Tau(1), settings=settings, rng=rng, shape=(1,)
    )
    assert not x.requires_grad


def test_clamp_bounds_every_prediction_in_the_loop():
    """A denoiser that overshoots to 5 is one that says 1: bounds act within the loop, not on its end."""
    process, rng = Process(Flow()), Rng(1, torch.arange(4))

    def clamped(x, t):
        return (x / 2 + 2).clamp(-1.0, 1.0)

    expected = Tau(1)(clamped, rng.normal((1,), "x_T"), rng, process=process, steps=3)
    assert torch.equal(draw(Linearized(process), steps=3, sampler=Tau(1), bound=1.0), expected)
    assert torch.equal(draw(Linearized(process), steps=3, sampler=Tau(1), bound="codec"), expected)
    assert not torch.equal(draw(Linearized(process), steps=3, sampler=Tau(1)), expected)
