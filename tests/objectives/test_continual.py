"""What keeps a generator near what it could, against closed forms."""

import pytest
import torch
from tiny_players import CAPTIONS, TinyClock, play, split, tiny_batch, tiny_players

from lmsd.errors import UserError
from lmsd.models.frozen import twin
from lmsd.objectives.continual import Continual
from lmsd.objectives.denoising import Denoising
from lmsd.objectives.preserved import LOSS
from lmsd.process.times import Uniform
from lmsd.rng import Rng, fold
from lmsd.sampling import Settings, Tau

KINDS = ("replay", "l2", "ewc", "rank1")


def method(keep, weight=1.0, **options):
    return Continual(
        Denoising(Uniform()),
        prompts=list(CAPTIONS[:2]),
        sampler=Tau(),
        settings=Settings(2),
        prior=Denoising(Uniform(), caption_dropout=0.0),
        keep=keep,
        weight=weight,
        own=6,
        **options,
    )


def players(moved=0.0):
    found = tiny_players()
    cast = {**found, "base": twin(found["generator"]).requires_grad_(False)}
    with torch.no_grad():
        for number, parameter in enumerate(cast["generator"].parameters()):
            parameter += moved * (1 + number)
    return cast


def kept(objective, cast, batch):
    with torch.no_grad():
        turn = next(iter(objective.turns(cast, batch, TinyClock(), Rng(0, batch.position))))
    return turn.loss().logs["kept"]


@pytest.mark.parametrize("keep", KINDS)
def test_nothing_is_kept_back_where_nothing_has_moved(keep):
    assert kept(method(keep), players(), tiny_batch(4)).item() == pytest.approx(0.0, abs=1e-20)
    assert kept(method(keep), players(0.1), tiny_batch(4)).item() > 0


def test_l2_is_the_squared_distance():
    cast = players(0.1)
    pairs = zip(cast["generator"].parameters(), cast["base"].parameters(), strict=True)
    expected = 0.5 * sum((new - old).square().sum().item() for new, old in pairs)
    assert kept(method("l2"), cast, tiny_batch(4)).item() == pytest.approx(expected)


@pytest.mark.parametrize("keep", ["ewc", "rank1"])
def test_importance_is_made_of_gradients_of_single_samples(keep):
    """F = mean of g², over its mean; μ = mean of g, of length 1: gradients taken one by one, from outside."""
    cast, batch, objective = players(0.1), tiny_batch(4), method(keep)
    found = kept(objective, cast, batch)
    base = cast["base"]
    own = list(base.parameters())
    grads, seed = [], int(fold(0, LOSS).item())
    for place in range(6):
        rows = torch.tensor([place])
        grads.append(objective._gradient(base, own, place, seed))
        images = objective._images[rows]
        assert images.shape[0] == 1
    flat = torch.stack([torch.cat([g.flatten() for g in each]) for each in grads])
    weight = flat.square().mean(0) if keep == "ewc" else flat.mean(0)
    weight = weight / (weight.mean() if keep == "ewc" else weight.norm())
    moved = torch.cat(
        [(n - o).flatten() for n, o in zip(cast["generator"].parameters(), own, strict=True)]
    ).detach()
    expected = (weight * moved.square()).sum() if keep == "ewc" else (weight @ moved).square()
    torch.testing.assert_close(found, 0.5 * expected)
    batched = flat.mean(0).square()  # the square of the mean gradient is another thing
    assert (batched.sum() / flat.square().mean(0).sum()).item() < 0.9


def test_replay_asks_for_the_old_answer_and_not_for_the_image():
    """Its gradient is that of ‖x̂ − x̂*‖², and an old net that is right about nothing is followed too."""
    cast, batch, objective = players(0.05), tiny_batch(4), method("replay")
    with torch.no_grad():
        own = objective._own(cast, batch, Rng(0, batch.position))
    rng = Rng(5, batch.position)
    value = objective.replayed(cast["generator"], cast["base"], own, rng)
    t = objective.prior.times(rng, cast["generator"].process)
    x_t = cast["generator"].process.noise(own.x, t, rng.normal(own.x.shape[1:], "eps").double())
    z = rng.normal((2,), "z").double()
    new, old = (cast[role](x_t, t, cast[role].condition(own), z) for role in ("generator", "base"))
    torch.testing.assert_close(value, (new - old).square().mean())


@pytest.mark.parametrize("keep", KINDS)
def test_micro_batches_are_one_batch_and_a_restart_changes_nothing(keep):
    runs = []
    for parts in (1, 2):
        runs.append(play(method(keep), players(0.05), split(tiny_batch(8), parts), TinyClock()))
    for key, gradient in runs[0][0][1].items():
        torch.testing.assert_close(runs[1][0][1][key], gradient, rtol=1e-9, atol=1e-12)
    cast, batch = players(0.05), tiny_batch(4)
    assert torch.equal(kept(method(keep), cast, batch), kept(method(keep), cast, batch))


def test_what_it_needs():
    part = method("ewc").cast["base"]
    assert not part.trained
    assert part.needs
    with pytest.raises(UserError, match="keep"):
        method("dropout")
