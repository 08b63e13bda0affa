"""Prior preservation: own images of the base beside every example."""

import pytest
import torch
from tiny_players import CAPTIONS, TinyClock, play, split, tiny_batch, tiny_players

from lmsd.errors import UserError
from lmsd.models.frozen import twin
from lmsd.objectives.base import Facts
from lmsd.objectives.denoising import Denoising
from lmsd.objectives.preserved import Preserved
from lmsd.process.times import Uniform
from lmsd.rng import Rng
from lmsd.sampling import Settings, Tau


def method(weight: float = 1.0, **options) -> Preserved:
    return Preserved(
        Denoising(Uniform()),
        prompts=list(CAPTIONS[:2]),
        sampler=Tau(),
        settings=Settings(4, guidance=2.0),
        prior=Denoising(Uniform(), caption_dropout=0.0),
        own=8,
        weight=weight,
        **options,
    )


def players():
    found = tiny_players()
    return {**found, "base": twin(found["generator"]).requires_grad_(False)}


def loss(objective, cast, batch, *, updates=0):
    rng = Rng(0, batch.position)
    turn = next(iter(objective.turns(cast, batch, TinyClock(updates=updates), rng)))
    return turn.loss()


def test_the_loss_is_the_methods_and_that_of_own_images():
    cast, batch = players(), tiny_batch(8)
    plain = next(iter(Denoising(Uniform()).turns(cast, batch, TinyClock(), Rng(0, batch.position)))).loss()
    assert torch.equal(loss(method(0.0), cast, batch).value, plain.value)
    one, two = (loss(method(weight), cast, batch) for weight in (1.0, 2.0))
    torch.testing.assert_close(one.value, plain.value + one.logs["prior"])
    torch.testing.assert_close(two.value, plain.value + 2 * one.logs["prior"])
    assert float(one.logs["prior"]) > 0


def test_micro_batches_add_up_to_the_batch():
    batch = tiny_batch(8)
    whole = loss(method(), players(), batch).value
    cast, objective = players(), method()
    parts = [loss(objective, cast, piece).value for piece in split(batch, 2)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_own_images_are_the_bases_whatever_has_been_learned():
    """A run that goes on draws them again, from the base and with the same noise."""
    cast, batch = players(), tiny_batch(4)
    first = method()
    loss(first, cast, batch)
    with torch.no_grad():
        for parameter in cast["generator"].parameters():
            parameter += 1.0
    again = method()
    loss(again, cast, batch)
    assert torch.equal(first._images, again._images)
    assert len(first._images) == 8
    assert first.cast["base"].fixed
    assert not first.state_dict()


def test_it_keeps_the_generator_near_what_it_drew():
    """Trained on one image alone, the loss on own images rises; with the prior it stays lower."""
    errors = []
    for weight in (0.0, 4.0):
        cast, batch, objective = players(), tiny_batch(8), method(weight)
        batch.x[:] = 0.9
        for _ in range(60):
            play(objective, cast, [batch], TinyClock())
        own = objective._own(cast, batch, Rng(0, batch.position))
        errors.append(float(objective.prior.loss(cast["generator"], own, Rng(5, batch.position)).value))
    assert errors[1] < 0.9 * errors[0]


def test_without_prompts_it_is_refused():
    with pytest.raises(UserError, match="which class is preserved"):
        Preserved(
            Denoising(Uniform()), prompts=[], sampler=Tau(), settings=Settings(2), prior=Denoising(Uniform())
        )


def test_classes_are_refused_before_anything_is_drawn():
    cast = players()
    cast["generator"].conditioner.reads = "label"
    with pytest.raises(UserError, match="reads classes"):
        method().prepare(Facts(CAPTIONS, lambda: None, cast))
