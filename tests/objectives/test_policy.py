"""Policy gradients where the gradient and the optimum are known."""

import math

import pytest
import torch
from affine import Affine, Clock, Polynomial, batch_at, first_turn, gaussian, moments, policy
from tiny_methods import ddpo, drawn, grpo

from lmsd.errors import UserError
from lmsd.rewards import Function
from lmsd.rng import Rng
from lmsd.sampling import log_prob

STEPS = 3


def gradients(objective, model, size, batches, **others):
    """Mean and standard error over batches of the gradient of the first turn's loss, in one vector."""
    found = []
    for update in range(batches):
        model.zero_grad()
        turn = first_turn(
            objective, {"generator": model, **others}, batch_at(update, size), Clock(images=update)
        )
        turn.loss().value.backward()
        found.append(torch.cat([model.a.grad, model.b.grad]))
    table = torch.stack(found)
    return table.mean(0), table.std(0) / math.sqrt(batches)


def model_of(seed=0):
    draw = torch.Generator().manual_seed(seed)
    return Affine(torch.rand(STEPS, generator=draw).tolist(), torch.randn(STEPS, generator=draw).tolist())


@pytest.mark.parametrize("surrogate", ["reinforce", "clip"])
def test_the_gradient_of_the_expected_reward_is_its_closed_form(surrogate):
    """J = c₁ m + c₂ (m² + v) of the chain's own mean and variance; within four standard errors."""
    model, reward = model_of(), Polynomial(0.7, -0.3)
    objective = ddpo(policy(STEPS), reward, group=2000, normalize="center", surrogate=surrogate)
    found, error = gradients(objective, model, 2000, 30)
    mean, variance = moments(model, policy(STEPS))
    value = 0.7 * mean - 0.3 * (mean**2 + variance)
    want = -torch.cat(torch.autograd.grad(value, [model.a, model.b]))
    assert want.abs().max() > 0.3
    assert ((found - want).abs() < 4 * error + 1e-6).all(), (found, want, error)
    assert (4 * error < 0.25 * want.abs().max()).all()


def test_the_gradient_with_path_kl_is_that_of_the_whole_objective():
    """J = E[r] − β E Σ KL_k by automatic differentiation of moments; the step form has another gradient."""
    beta, model, reference = 0.5, model_of(1), model_of(2)
    options = {"group": 2000, "normalize": "center", "kl": beta, "clip": None}
    players = {"reference": reference.requires_grad_(False)}
    exact = grpo(policy(STEPS), Polynomial(0.7), **options)
    found, error = gradients(exact, model, 2000, 30, **players)
    mean, variance = torch.zeros(()).double(), torch.ones(()).double()
    kl = torch.zeros(()).double()
    for k, kernel in enumerate(policy(STEPS).transitions(model.process)):
        slope, shift = model.a[k] - reference.a[k], model.b[k] - reference.b[k]
        away = slope**2 * (variance + mean**2) + 2 * slope * shift * mean + shift**2
        kl = kl + kernel.push**2 * away / (2 * kernel.std**2)
        step = kernel.keep + kernel.push * model.a[k]
        mean, variance = step * mean + kernel.push * model.b[k], step**2 * variance + kernel.std**2
    want = -torch.cat(torch.autograd.grad(0.7 * mean - beta * kl, [model.a, model.b]))
    assert ((found - want).abs() < 4 * error + 1e-6).all(), (found, want, error)
    step_form = grpo(policy(STEPS), Polynomial(0.7), form="step", **options)
    other, error = gradients(step_form, model, 2000, 30, **players)
    assert ((other - want).abs() > 8 * error).any()


@pytest.mark.parametrize("learned", [1, 2])
def test_an_action_answers_for_the_kl_of_the_steps_after_it_and_not_of_its_own(learned):
    """Its own step's KL is known before it acts: with nothing after it both forms are one, sample by sample.

    To charge it would change no mean, only the noise, so that no test of expectations can see it.
    """
    found = []
    for form in ("path", "step"):
        model, reference = model_of(1), model_of(2).requires_grad_(False)
        objective = grpo(
            policy(STEPS), Polynomial(0.7), group=8, normalize="center", kl=0.5, form=form, window=learned
        )
        turn = first_turn(objective, {"generator": model, "reference": reference}, batch_at(0, 8), Clock())
        turn.loss().value.backward()
        found.append(torch.cat([model.a.grad, model.b.grad]))
    assert found[0].abs().max() > 0.01
    assert torch.equal(*found) == (learned == 1)


def test_grpo_reaches_the_tilted_model():
    """p₀ exp(c x/β): the same std and a mean that is moved by c std²/β. τ = 1 from α_T = 0."""
    reward, beta = 0.8, 0.5
    model, reference = gaussian(STEPS), gaussian(STEPS).requires_grad_(False)
    objective = grpo(policy(STEPS), Polynomial(reward), group=512, normalize="center", kl=beta)
    before = [float(value) for value in moments(model, policy(STEPS))]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, betas=(0.8, 0.99))
    for update in range(150):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - update / 150)
        turn = first_turn(
            objective,
            {"generator": model, "reference": reference},
            batch_at(update, 512),
            Clock(update, update),
        )
        optimizer.zero_grad()
        turn.loss().value.backward()
        optimizer.step()
    mean, variance = moments(model, policy(STEPS))
    assert float(mean) == pytest.approx(before[0] + reward * before[1] / beta, abs=0.06)
    assert float(variance) == pytest.approx(before[1], rel=0.06)


def test_the_first_inner_step_has_ratio_one_and_later_ones_are_clipped():
    model = gaussian(STEPS)
    objective = grpo(
        policy(STEPS), Polynomial(1.0), group=8, kl=0.0, clip=0.1, epochs=2, minibatches_per_epoch=2
    )
    batch = batch_at(0, 32)
    optimizer = torch.optim.SGD(model.parameters(), lr=5.0)
    script = objective.turns({"generator": model}, batch, Clock(), Rng(0, batch.position))
    logs = []
    while True:
        with torch.no_grad():
            turn = next(script, None)
        if turn is None:
            break
        loss = turn.loss()
        logs.append(loss.logs)
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
    assert len(logs) == 4
    assert logs[0]["ratio"] < 1e-4
    assert logs[0]["clipped"] == 0
    assert logs[-1]["ratio"] > 0.1
    assert logs[-1]["clipped"] > 0.1


def test_parts_are_every_other_group_and_make_up_the_whole():
    """Gradients of two parts average to that of the undivided batch."""

    def grad(parts):
        model = gaussian(STEPS)
        batch = batch_at(0, 32)
        objective = grpo(policy(STEPS), Polynomial(1.0), group=8, kl=0.0, minibatches_per_epoch=parts)
        total = 0
        with torch.no_grad():
            turns = list(objective.turns({"generator": model}, batch, Clock(), Rng(0, batch.position)))
        for turn in turns:
            model.zero_grad()
            turn.loss().value.backward()
            total = total + torch.cat([model.a.grad, model.b.grad]) / len(turns)
        return total

    torch.testing.assert_close(grad(2), grad(1))


def test_units_of_the_field_are_nats_over_the_number_of_pixels():
    """exp(Δ/D) clipped at exp(±c/D) and KL/D: the same signs and the same samples clipped."""
    delta = torch.linspace(-3, 3, 13).double()
    objective = grpo(policy(2), Polynomial(1.0), group=2, clip=1.0)
    for advantage in (torch.ones(13).double(), -torch.ones(13).double()):
        gain, cut = objective.update.gain(advantage, delta, 1)
        mean, same = objective.update.gain(advantage, delta, 192)
        assert cut == same
        bound = delta.clamp(-1, 1)
        clipped = torch.minimum(advantage * delta.exp(), advantage * bound.exp())
        torch.testing.assert_close(gain, clipped)
        small = torch.minimum(advantage * (delta / 192).exp(), advantage * (bound / 192).exp())
        torch.testing.assert_close(mean, small)


def test_a_path_that_has_become_certain_is_clipped_and_breaks_nothing():
    """Ratios of e^±200, which float32 does not hold: no slope for a good path, and a finite one for a bad."""
    objective = grpo(policy(2), Polynomial(1.0), group=2, clip=1.0)
    slopes = []
    for advantage in (1.0, -1.0):
        delta = torch.tensor([200.0, -200.0], requires_grad=True)
        objective.update.gain(torch.full((2,), advantage), delta, 1)[0].sum().backward()
        slopes.append(delta.grad)
    assert slopes[0].tolist() == [0.0, pytest.approx(0.0)]
    assert slopes[1].isfinite().all()


def test_a_spent_budget_leaves_the_kl_alone():
    """Over the budget the gradient is that of β KL with no reward at all."""

    def grad(budget, reward):
        model, reference = model_of(1), model_of(2).requires_grad_(False)
        objective = grpo(
            policy(STEPS), Polynomial(reward), group=8, kl=0.5, normalize="center", budget=budget
        )
        found, _ = gradients(objective, model, 64, 2, reference=reference)
        return found

    assert torch.equal(grad(1e-6, 1.0), grad(1e-6, 0.0))
    assert not torch.allclose(grad(1e6, 1.0), grad(1e6, 0.0))


def test_the_window_moves_with_the_updates():
    objective = grpo(drawn(6), Polynomial(1.0), group=2, window=2, stride=2, every=10)
    same = ddpo(drawn(6), Polynomial(1.0), window=2, stride=2, every=10)
    for each in (objective, same):
        places = [each.steps_at(Clock(updates=10 * k)) for k in range(4)]
        assert places == [(0, 1), (2, 3), (4, 5), (0, 1)]
    assert objective.steps_at(Clock(updates=9)) == (0, 1)
    assert grpo(drawn(6), Polynomial(1.0), group=2).steps_at(Clock()) is None


@pytest.mark.parametrize(("last_std", "places"), [(0.0, [0, 1, 2, 0, 1]), (0.2, [0, 1, 2, 3, 0])])
def test_a_window_of_one_step_leaves_out_a_last_one_without_noise(last_std, places):
    """There is nothing to learn from it, and a run would end there."""
    objective = grpo(drawn(4, last_std=last_std), Polynomial(1.0), group=2, kl=0.0, window=1, clip=None)
    assert [objective.steps_at(Clock(updates=k)) for k in range(5)] == [(place,) for place in places]
    for update in range(5):
        first_turn(objective, {"generator": gaussian(4)}, batch_at(update, 4), Clock(update, update))


def test_only_steps_of_the_window_are_learned_from():
    model = gaussian(STEPS)
    objective = grpo(policy(STEPS, ode=True), Polynomial(1.0), group=8, kl=0.0, window=1, every=1)
    for update in range(STEPS):
        found, _ = gradients(objective, model, 64, 2)
        moved = (found.view(2, STEPS).abs().sum(0) > 0).nonzero().flatten().tolist()
        assert moved == [0]
        turn = first_turn(objective, {"generator": model}, batch_at(0, 64), Clock(update, 100 + update))
        model.zero_grad()
        turn.loss().value.backward()
        assert model.b.grad.nonzero().flatten().tolist() == [update]


def test_reinforce_is_the_gradient_of_log_probability():
    """−A log π with the prompt's own statistics: by hand from one rollout."""
    model, batch = model_of(), batch_at(0, 16)
    objective = ddpo(policy(STEPS), Polynomial(1.0), surrogate="reinforce")
    turn = first_turn(objective, {"generator": model}, batch, Clock())
    turn.loss().value.backward()
    found = model.b.grad.clone()
    path = policy(STEPS).rollout(
        model, model.condition(batch), rng=Rng(0, batch.position), shape=(1,), dtype=torch.float64
    )
    reward = path.images[:, 0]
    advantage = (reward - reward.mean()) / (reward.std(correction=0) + 1e-4)
    model.zero_grad()
    total = 0
    for j, k in enumerate(path.steps):
        kernel = policy(STEPS).transitions(model.process)[k]
        x_t = path.x[:, k]
        mean = kernel.mean(x_t, model.a[k] * x_t + model.b[k])
        total = total - (advantage * log_prob(path.x[:, k + 1], mean, path.std[j])).mean()
    total.backward()
    torch.testing.assert_close(found, model.b.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: grpo(policy(2), Polynomial(1.0), window=3), "window=3 of 2"),
        (lambda: grpo(policy(2), Polynomial(1.0), clip=0.0), "clip=0.0"),
        (lambda: grpo(policy(2), Polynomial(1.0), units="bits"), "units='bits'"),
        (lambda: ddpo(policy(2), Polynomial(1.0), surrogate="reinforce", epochs=2), "one update a batch"),
        (lambda: ddpo(policy(2), Polynomial(1.0), normalize="mean"), "normalize='mean'"),
        (lambda: grpo(policy(2), Polynomial(1.0), kl=-1.0), "not be negative"),
    ],
)
def test_options_that_cannot_be_are_refused(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_groups_that_do_not_fit_are_refused():
    objective = grpo(policy(2), Polynomial(1.0), group=3, kl=0.0)
    with pytest.raises(UserError, match="whole groups of 3"):
        first_turn(objective, {"generator": gaussian(2)}, batch_at(0, 8), Clock())


def test_parts_that_would_be_unequal_are_refused():
    """Three groups in two parts: means over one and two groups, or over none, which is no number."""
    objective = grpo(policy(2), Polynomial(1.0), group=4, kl=0.0, minibatches_per_epoch=2)
    with pytest.raises(UserError, match=r"12 samples .* do not make 2 equal parts of whole groups of 4"):
        first_turn(objective, {"generator": gaussian(2)}, batch_at(0, 12), Clock())


def test_failing_rewards_leave_the_model_alone_and_end_a_run_that_has_nothing_else():
    """Weight 0 for a group with one bad score; nothing moves when all fail; patience ends it with a name."""

    def broken(images, captions):
        scores = images[:, 0].clone()
        scores[3] = math.nan
        return scores

    def grad(function, group):
        model = gaussian(STEPS)
        objective = grpo(policy(STEPS), Function(function), group=group, kl=0.0, patience=3)
        found, _ = gradients(objective, model, 16, 2)
        return found, objective

    with pytest.warns(UserWarning, match="broken returned 1 of 16 scores"):
        partly, _ = grad(broken, 4)
    assert partly.abs().max() > 0
    nothing, objective = grad(broken, 16)
    assert not nothing.any()
    with pytest.raises(UserError, match=r"3 batches in a row.*broken"):
        gradients(objective, gaussian(STEPS), 16, 2)
