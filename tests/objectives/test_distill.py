"""Distribution matching against closed forms, and its script of turns."""

import math

import pytest
import torch
from affine import Clock
from gaussian_players import marginal, numbers, players

from lmsd.errors import UserError
from lmsd.objectives import Distill, Heads, Matching, Tilt
from lmsd.objectives.base import Facts
from lmsd.objectives.matching import noised, noisier
from lmsd.objectives.ratio import WEIGHTS, LastMean, weight_of
from lmsd.objectives.starts import aside
from lmsd.process import Article, Flow, Levels, Process, Uniform
from lmsd.rng import Rng
from lmsd.sampling import Settings, Tau
from lmsd.types import Batch, Cond

ONE = Settings(1, bound=None)
QUIET = {"student": 0.0, "fake": 0.0}


def distill(*, heads=None, matching=None, settings=ONE, **options):
    return Distill(
        Uniform(),
        sampler=Tau(0.0),
        settings=settings,
        heads=Heads(**(QUIET if heads is None else heads)),
        matching=Matching(**{"weighting": "none", **(matching or {})}),
        **options,
    )


def turn_of(objective, cast, role, *, count=64, played=0, updates=0, start=0, seed=0):
    """The loss of one role's turn, with gradients for it alone."""
    batch, clock = numbers(count, start), Clock(updates)
    clock.played = {"fake": objective.every - 1 if role == "generator" else played}
    for turn in objective.turns(cast, batch, clock, Rng(seed, batch.position)):
        for name, player in cast.items():
            player.requires_grad_(name == turn.player)
            player.zero_grad()
        if turn.player == role:
            return turn.loss()
    raise AssertionError(f"{role} had no turn")


def gradient(objective, cast, **options):
    turn_of(objective, cast, "generator", **options).value.backward()
    return torch.stack([cast["generator"].first.grad, cast["generator"].second.grad])


def test_the_gap_is_the_difference_of_the_scores():
    """G = (σ²/α)(s_G − s_T) over the mean size of x̂ − T, with the scores of two normal laws."""
    cast = players(student=(0.8, -0.3))
    batch = numbers(32)
    rng, x = Rng(1, batch.position), torch.linspace(-2, 2, 32, dtype=torch.float64)[:, None]
    t = Uniform()(rng, cast["teacher"].process)
    x_t = noised(cast["teacher"].process, x, t, rng, "eps")
    score = cast["fake"].score(x_t, t, Cond()).detach()
    found = Matching().gap(cast["teacher"], batch, x, (x_t, t), score, t, rng)
    at = t.double()[:, None]

    def slope(mean, std):
        center, variance = marginal(mean, std, at)
        return (center - x_t) / variance

    wanted = at**2 / (1 - at) * (slope(-0.3, 0.8) - slope(0.5, 0.7))
    size = (x - cast["teacher"](x_t, t, Cond()).detach()).abs().clamp(min=1e-5)
    torch.testing.assert_close(found * size, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("divergence", ["rkl", "kl", "jeffreys"])
def test_a_fake_that_is_the_teacher_teaches_nothing(divergence):
    cast = players(student=(1.3, 0.4), fake=(0.5, 0.7))
    heads = {"student": 0.0, "fake": 1.0}
    objective = distill(matching={"divergence": divergence}, heads=heads)
    assert torch.equal(gradient(objective, cast), torch.zeros(2, dtype=torch.float64))
    away = players(student=(1.3, 0.4))
    assert gradient(objective, away).abs().min() > 1e-3


def test_the_gradient_is_that_of_the_divergence_to_scale():
    """One point, one time: L's gradient in x̂ is h g/D."""
    cast = players(student=(0.8, -0.3))
    objective = distill()
    found = gradient(objective, cast, count=4096)
    batch = numbers(4096)
    rng = Rng(0, batch.position, turn=1)
    x_T = aside(rng, 5).normal((1,), "x_T").double()
    t, x = Uniform()(rng, cast["teacher"].process), 0.8 * x_T - 0.3
    x_t = noised(cast["teacher"].process, x, t, rng, "eps")
    fake, teacher = (m(x_t, t, Cond()).detach() for m in (cast["fake"].score, cast["teacher"]))
    gap = (fake - teacher) / (x - teacher).abs()
    torch.testing.assert_close(found, torch.stack([(gap * x_T).mean(), gap.mean()]), rtol=1e-6, atol=1e-9)


def test_logits_that_weigh_are_calibrated_every_so_many_updates():
    cast = players(student=(1.3, 0.4))
    objective = distill(matching={"divergence": "kl"}, heads={"student": 0.0, "fake": 1.0, "calibrate": 3})
    objective.prepare(Facts((), lambda: numbers(64), cast))
    fitted = []
    for updates in range(7):
        turn_of(objective, cast, "fake", updates=updates)
        fitted.append(objective.state_dict()["fitted"])
    assert fitted == [0, 0, 0, 3, 3, 3, 6]


def learned(objective, *, student, teacher, steps, rate, follow=True, **cast):
    """(mean, deviation) of the student after Adam; follow: the fake is the student's law, exactly."""
    cast = players(student=student, teacher=teacher, **cast)
    optimizers = {
        name: torch.optim.Adam(cast[name].parameters(), lr=rate, betas=(0.5, 0.9))
        for name in ("generator", "fake")
    }
    tail = []
    for step in range(steps):
        for role in ("generator",) if follow else ("fake", "generator"):
            if follow:
                with torch.no_grad():
                    cast["fake"].score.first.copy_(cast["generator"].second)
                    cast["fake"].score.second.copy_(cast["generator"].first.abs().log())
            for group in optimizers[role].param_groups:
                group["lr"] = rate * (1 - step / steps)
            turn_of(objective, cast, role, count=256, start=256 * step, updates=step).value.backward()
            optimizers[role].step()
        objective.matching.mean.settle()
        tail.append((cast["generator"].second.item(), cast["generator"].first.abs().item()))
    kept = torch.tensor(tail[-steps // 10 :])
    return kept.mean(0).tolist()


@pytest.mark.parametrize("divergence", ["rkl", "kl", "js"])
def test_a_linear_student_reaches_the_teachers_law(divergence):
    objective = distill(matching={"divergence": divergence}, heads={"student": 0.0, "fake": 1.0})
    mean, std = learned(objective, student=(1.2, -0.4), teacher=(0.5, 0.7), steps=400, rate=0.05)
    assert mean == pytest.approx(0.5, abs=0.02)
    assert std == pytest.approx(0.7, abs=0.02)


def test_a_fake_that_has_to_learn_leads_there_too():
    mean, std = learned(
        distill(), student=(1.2, -0.4), teacher=(0.5, 0.7), steps=500, rate=0.04, follow=False
    )
    assert mean == pytest.approx(0.5, abs=0.03)
    assert std == pytest.approx(0.7, abs=0.03)


def test_the_adversary_alone_leads_to_the_data():
    """With heads that are exact and a teacher that is wrong, a λ_G of 1,000 draws the student to the data."""
    objective = distill(heads={"student": 1000.0, "fake": 1.0})
    cast = {"teacher": (0.5, 0.7), "data": (-0.6, 0.5)}
    mean, std = learned(objective, student=(1.0, 0.0), steps=400, rate=0.05, **cast)
    assert mean == pytest.approx(-0.6, abs=0.08)
    assert std == pytest.approx(0.5, abs=0.08)


# -- f-distill ---------------------------------------------------------------------------------------------

GENERATORS = {
    "rkl": lambda r: -r.log(),
    "kl": lambda r: r * r.log(),
    "js": lambda r: r * r.log() - (r + 1) * ((r + 1) / 2).log(),
    "soft_rkl": lambda r: (r + 1) * (0.5 + 0.5 / r).log(),
    "hellinger": lambda r: (1 - r.sqrt()) ** 2,
    "neyman": lambda r: (1 - r) ** 2 / r,
    "jeffreys": lambda r: (r - 1) * r.log(),
}
"""f of D_f(p ‖ q) = E_q f(p/q), each up to a factor."""


@pytest.mark.parametrize("divergence", WEIGHTS)
def test_weights_are_the_second_derivative_of_the_divergence(divergence):
    ratio = torch.linspace(0.05, 9.0, 50, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(GENERATORS[divergence](ratio).sum(), ratio, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), ratio)
    wanted = bend * ratio.detach() ** 2
    found = weight_of(divergence, ratio.detach().log())
    torch.testing.assert_close(found / found[20], wanted / wanted[20], rtol=1e-10, atol=1e-12)


def test_the_f_gradient_is_that_of_the_divergence_itself():
    """Σ h (s_G − s_T)/α ∂x̂ at the clean end is ∇ D_f(p_T ‖ p_G) of two normal laws, by quadrature."""
    grid = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    step = grid[1] - grid[0]

    def density(mean, std):
        return (-0.5 * ((grid - mean) / std) ** 2).exp() / (std * math.sqrt(2 * math.pi))

    for divergence, f in GENERATORS.items():
        law = torch.tensor([0.2, 0.9], dtype=torch.float64, requires_grad=True)
        own, target = density(law[0], law[1]), density(torch.tensor(0.5).double(), torch.tensor(0.8).double())
        (wanted,) = torch.autograd.grad((own * f(target / own)).sum() * step, law)
        ratio, mean, std = (target / own).detach(), *law.detach()
        scores = -(grid - mean) / std**2 + (grid - 0.5) / 0.8**2
        weighed = own.detach() * weight_of(divergence, ratio.log()) * scores
        found = torch.stack([weighed.sum(), (weighed * (grid - mean) / std).sum()]) * step
        torch.testing.assert_close(found[0] / found[1], wanted[0] / wanted[1], rtol=1e-4, atol=1e-6)


def test_weights_are_divided_by_the_mean_of_the_update_before():
    mean = LastMean(2.0)
    first, second = torch.tensor([1.0, 3.0]), torch.tensor([5.0, 7.0])
    assert mean(first).tolist() == [0.5, 1.5]
    assert mean(second).tolist() == [2.5, 3.5]  # another micro-batch of the same update
    mean.settle()
    mean.settle()  # the other micro-batch's script; nothing is left to do
    assert mean.value.item() == 4.0
    other = LastMean(1.0)
    other.load_state_dict(mean.state_dict())
    assert other(first).tolist() == mean(first).tolist() == [0.25, 0.75]
    mean(torch.tensor([math.nan, 1.0]))
    mean.settle()
    assert mean.value.item() == 4.0, "the last that was a number is kept"


@pytest.mark.parametrize("divergence", ["kl", "jeffreys"])
def test_the_first_update_divides_by_the_weight_of_equal_laws(divergence):
    cast = players(student=(0.7, 0.5), teacher=(0.5, 0.7))
    objective = distill(matching={"divergence": divergence}, heads={"student": 0.0, "fake": 1.0})
    loss = turn_of(objective, cast, "generator")
    assert loss.logs["weight"].item() == pytest.approx(1.0, abs=1e-6)


# -- decoupled ---------------------------------------------------------------------------------------------


def test_the_surplus_is_noisier_than_what_comes_next():
    rng = Rng(0, torch.arange(1000))
    flow, chain = Process(Flow()), Process(Article(100))
    for process, s in ((flow, 0.0), (flow, 0.25), (chain, 0.0), (chain, 20.0)):
        t = Uniform()(rng, process)
        found = noisier(t, torch.full((1000,), s), process)
        assert bool((found > s).all())
        assert found.max() <= process.schedule.t_noise
        assert found.min() - s <= 0.03 * process.schedule.t_noise
        if process is chain:
            assert torch.equal(found, found.round())
    assert torch.equal(noisier(Uniform()(rng, flow), torch.zeros(1000), flow), Uniform()(rng, flow))


class Biased(torch.nn.Module):
    """A teacher whose condition moves x̂₀ by one; the null condition does not."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.process, self.z_dim = inner, inner.process, 0

    def condition(self, batch, drop=None):
        told = torch.ones(len(batch), 1, dtype=torch.float64)
        return Cond(pooled=told if drop is None else torch.where(drop[:, None], 0 * told, told))

    def forward(self, x_t, t, cond, z=None):
        return self.inner(x_t, t, Cond()) + cond.pooled


@pytest.mark.parametrize("apart", [False, True])
def test_guidance_adds_the_surplus_of_the_condition(apart):
    cast = players(student=(0.8, -0.3))
    teacher, batch = Biased(cast["teacher"]), numbers(16)
    rng, x = Rng(1, batch.position), torch.linspace(-2, 2, 16, dtype=torch.float64)[:, None]
    t = Uniform()(rng, teacher.process)
    x_t = noised(teacher.process, x, t, rng, "eps")
    score, s = cast["fake"].score(x_t, t, Cond()).detach(), torch.full((16,), 0.25)
    matching = Matching(guidance=3.0, surplus=Uniform() if apart else None)
    found = matching.gap(teacher, batch, x, (x_t, t), score, s, rng)
    told = teacher.inner(x_t, t, Cond()).detach() + 1
    if not apart:  # T = null + 3 (cond − null) = null + 3
        torch.testing.assert_close(found, (score - told - 2) / (x - told - 2).abs().clamp(min=1e-5))
        return
    later = noisier(Uniform()(aside(rng, 9), teacher.process), s, teacher.process)
    x_l = noised(teacher.process, x, later, rng, "eps_surplus")
    there = teacher.inner(x_l, later, Cond()).detach() + 1
    surplus = -2 / (x - there).abs().clamp(min=1e-5)
    torch.testing.assert_close(found, (score - told) / (x - told).abs().clamp(min=1e-5) + surplus)


# -- the script --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 2, 5])
def test_the_clock_decides_whose_turn_it_is(every):
    objective, cast, roles, clock = distill(every=every), players(), [], Clock()
    for step in range(10):
        batch = numbers(4, 4 * step)
        for turn in objective.turns(cast, batch, clock, Rng(0, batch.position)):
            roles.append(turn.player)
            clock.played[turn.player] = clock.played.get(turn.player, 0) + 1
    assert roles == (["fake"] * every + ["generator"]) * (10 // every) + ["fake"] * (10 % every)


def test_students_of_several_steps_learn_at_all_knots():
    """Backward simulation: the noise level of x_t goes round with the student's own updates."""
    cast, seen = players(), []
    cast["generator"].register_forward_hook(lambda m, inputs, output: seen.append(inputs[1][0].item()))
    objective = distill(settings=Settings(4, bound=None))
    for updates in range(5):
        seen.clear()
        turn_of(objective, cast, "generator", updates=updates)
        assert seen == [1 - k / 4 for k in range(updates % 4 + 1)]


@pytest.mark.parametrize(("data", "right"), [((9.0, 0.1), 0.95), ((0.0, 1.0), 0.6)])
def test_the_probe_tells_how_often_the_heads_are_right(data, right):
    """Of data far from the student's images nearly always, even after noise; of its own law half the time."""
    cast, batch = players(student=(1.0, 0.0), data=data), numbers(512)
    real = Batch(data[0] + data[1] * Rng(4, batch.position).normal((1,), "x").double(), batch.position)
    objective = distill(heads={"student": 0.0, "fake": 1.0}, judged=Levels((0.3,)))
    found = objective.probe(cast, real, Rng(0, batch.position))["fake/accuracy"].item()
    assert found > right if right > 0.9 else found < right
    assert distill().probe(cast, real, Rng(0, batch.position)) == {}


def test_what_contradicts_itself_is_refused():
    heads = {"student": 0.1, "fake": 0.1}
    for options, said in (
        ({"matching": {"divergence": "kl"}}, "heads.fake=0"),
        ({"tilt": Tilt()}, "heads.fake=0"),
        ({"matching": {"divergence": "chi"}}, "rkl, kl"),
        ({"matching": {"surplus": Uniform()}}, "guidance=1 adds nothing"),
        ({"matching": {"divergence": "kl"}, "heads": {**heads, "loss": "relativistic"}}, "nonsaturating"),
        ({"matching": {"divergence": "kl"}, "heads": heads, "judged": Levels((0.0,))}, "judged=null"),
        ({"heads": {"student": 0.1, "fake": 0.0}}, "must learn"),
        ({"heads": {"student": -1.0}}, "0 or more"),
        ({"every": 0}, "at least 1"),
        ({"starts": "noise"}, "data, own"),
    ):
        with pytest.raises(UserError, match=said):
            distill(**options)
    for beta, level in ((0.0, 0.0), (1.0, -0.1)):
        with pytest.raises(UserError, match="tilt"):
            Tilt(beta, level=level)
    with pytest.raises(UserError, match="levels"):
        Levels(())
