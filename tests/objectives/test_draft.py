"""DRaFT: the gradient through the last steps, against automatic differentiation of the whole chain."""

import copy

import pytest
import torch
from affine import Affine, Clock, Polynomial, batch_at, first_turn
from tiny_methods import draft, drawn

from lmsd.errors import UserError
from lmsd.rewards import Function, SceneWords
from lmsd.rng import Rng

STEPS = 4


def model():
    return Affine([0.2, 0.4, 0.6, 0.8], [0.1, -0.1, 0.2, 0.0])


def climbing(**options):
    return draft(options.pop("policy", drawn(STEPS, tau=0.0)), Polynomial(0.5, -0.2), **options)


@pytest.mark.parametrize("tau", [0.0, 1.0])
@pytest.mark.parametrize("last", [1, 2, STEPS])
def test_the_gradient_is_that_of_the_last_steps(last, tau):
    policy, net, batch = drawn(STEPS, tau=tau), model(), batch_at(0, 64)
    turn = first_turn(climbing(policy=policy, last=last), {"generator": net}, batch, Clock())
    turn.loss().value.backward()
    other, rng = model(), Rng(0, batch.position)
    x = rng.normal((1,), "x_T").double()
    for k, kernel in enumerate(policy.transitions(other.process)):
        x = kernel.mean(x, other.a[k] * x + other.b[k]) + kernel.std * rng.at(k).normal((1,), "step").double()
        x = x.detach() if k < STEPS - last else x
    (-(0.5 * x - 0.2 * x.square()).mean()).backward()
    torch.testing.assert_close(net.a.grad, other.a.grad)
    torch.testing.assert_close(net.b.grad, other.b.grad)
    moved = net.b.grad.nonzero().flatten().tolist()
    assert moved == list(range(STEPS - last, STEPS))


def test_it_climbs_to_the_best_image():
    """0.5 x − 0.2 x² is greatest at 1.25."""
    net, objective = model(), climbing(last=2)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    for update in range(150):
        turn = first_turn(objective, {"generator": net}, batch_at(update, 64), Clock(update, update))
        optimizer.zero_grad()
        loss = turn.loss()
        loss.value.backward()
        optimizer.step()
    assert float(loss.logs["reward"]) == pytest.approx(0.5 * 1.25 - 0.2 * 1.25**2, abs=0.01)


def test_the_pull_is_the_distance_of_the_means():
    net, reference, batch = model(), model().requires_grad_(False), batch_at(0, 64)
    with torch.no_grad():
        net.b += 0.3
    players = {"generator": net, "reference": reference}
    values = [
        float(first_turn(climbing(last=1, reference_weight=w), players, batch, Clock()).loss().value)
        for w in (0.0, 2.0)
    ]
    push = drawn(STEPS, tau=0.0).transitions(net.process)[-1].push
    assert values[1] - values[0] == pytest.approx(2.0 * (0.3 * push) ** 2)


def test_pixels_out_of_range_come_back():
    """Clamped for the judge, with the gradient passed through."""
    net, batch = model(), batch_at(0, 8)
    net.bound = 1.0
    with torch.no_grad():
        net.b += 5.0
    objective = draft(drawn(STEPS, tau=0.0), Polynomial(-1.0))
    loss = first_turn(objective, {"generator": net}, batch, Clock()).loss()
    assert float(loss.value) == pytest.approx(1.0)  # the reward of a clamped 1
    loss.value.backward()
    assert net.b.grad[-1] > 0.1


def test_a_score_that_is_nan_costs_its_group_and_no_gradient():
    """√ of a negative number is NaN and so is its slope: the others' gradient is what it is without them."""

    def root(images, captions):
        return (images[:, 0] - images[:, 0].detach() + sign).sqrt()

    def grad(group, count=8):
        net = model()
        objective = draft(drawn(STEPS, tau=0.0), Function(root, differentiable=True), group=group)
        loss = first_turn(objective, {"generator": net}, batch_at(0, count), Clock()).loss()
        loss.value.backward()
        return net.b.grad, loss.logs

    sign = torch.ones(8).double()
    clean, _ = grad(1)
    sign = torch.where(torch.arange(8) == 5, -1.0, 1.0).double()
    with pytest.warns(UserWarning, match="root returned 1 of 8 scores"):
        found, logs = grad(1)
    torch.testing.assert_close(found, clean * 7 / 8)
    assert (float(logs["reward"]), float(logs["reward_failed"])) == (1.0, 1 / 8)
    torch.testing.assert_close(grad(2)[0], clean * 6 / 8)


def test_batches_count_towards_patience_and_not_their_micro_batches():
    """Two halves that fail are one batch; a half with a score is a batch with one."""

    def broken(images, captions):
        if fails:
            raise ValueError("not today")
        return images[:, 0]

    objective = draft(drawn(STEPS, tau=0.0), Function(broken, differentiable=True), patience=3)
    for update, kinds in enumerate([(True, True), (True, True), (False, True), (True, True), (True, True)]):
        parts = [batch_at(2 * update + half, 4) for half in range(2)]
        turns = [first_turn(objective, {"generator": model()}, part, Clock(update, update)) for part in parts]
        for fails, turn in zip(kinds, turns, strict=True):  # noqa: B007 - the reward looks at it
            turn.loss()
    last = first_turn(objective, {"generator": model()}, batch_at(10, 4), Clock(5, 5))
    fails = True
    with pytest.raises(UserError, match="3 batches in a row"):
        last.loss()


def test_what_cannot_be_is_refused_and_a_failing_reward_moves_nothing():
    with pytest.raises(UserError, match="SceneWords has no gradient"):
        draft(drawn(4), SceneWords())
    with pytest.raises(UserError, match="last=5 of 4"):
        climbing(last=5)

    def broken(images, captions):
        raise ValueError("not today")

    net = copy.deepcopy(model())
    objective = draft(drawn(STEPS, tau=0.0), Function(broken, differentiable=True), patience=2)
    with pytest.warns(UserWarning, match="broken raised ValueError: not today"):
        first_turn(objective, {"generator": net}, batch_at(0, 8), Clock()).loss().value.backward()
    assert not net.b.grad.any()
    with pytest.raises(UserError, match="2 batches in a row"):
        first_turn(objective, {"generator": net}, batch_at(1, 8), Clock(1, 1)).loss()
