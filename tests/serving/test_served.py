"""An image is a function of model, prompt, seed and place, whatever shares its batch."""

import numpy as np
import pytest
import tiny_models
import torch
from tiny_models import WORDS

from lmsd.errors import UserError
from lmsd.serving import served as served_module
from lmsd.serving.served import Alone, Item, Served, Way

PROMPTS = [*WORDS, "", "a red circle", "a blue star on the left", "a small yellow cross"]
NETS = ["digits", "shapes", "cifar10"]


def alone(served: Served, items: list[Item]) -> list[np.ndarray]:
    return [served.draw([item])[0] for item in items]


def asked(way: Way) -> list[Item]:
    return [Item(way, prompt, seed=100 + 7 * row, place=row % 3) for row, prompt in enumerate(PROMPTS)]


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_an_image_of_a_batch_is_the_one_drawn_alone(name: str, guidance: float) -> None:
    served = Served(tiny_models.model(name), name, at_once=8)
    items = asked(Way(4, guidance))
    apart = np.abs(np.stack(served.draw(items)).astype(int) - np.stack(alone(served, items)))
    assert apart.max() <= 1
    assert (apart > 0).mean() < 1e-3


@pytest.mark.parametrize("name", NETS)
def test_exact_images_are_bit_equal_at_every_place_of_the_batch(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served_module, "levels", lambda images: images)  # before they are rounded to 256
    served = Served(tiny_models.model(name), name, at_once=8, exact=True)
    way = Way(4, 2.0)
    items = asked(way)
    single = alone(served, items)
    for shift in range(8):
        rolled = items[shift:] + items[:shift]
        for item, found in zip(rolled, served.draw(rolled), strict=True):
            assert np.array_equal(found, single[items.index(item)]), (shift, item)


@pytest.mark.parametrize("name", NETS)
def test_a_condition_that_is_asked_for_alone_is_the_same_in_every_company(name: str) -> None:
    model = tiny_models.model(name)
    conditioner = Alone(model.generator.conditioner)
    batch = model.batch(PROMPTS)
    drop = torch.arange(len(batch)) % 3 == 0
    whole = vars(conditioner(batch, drop))
    for row in range(len(batch)):
        single = vars(conditioner(batch.rows(slice(row, row + 1)), drop[row : row + 1]))
        for key, value in single.items():
            assert value is None or torch.equal(value[0], whole[key][row]), key
    plain = vars(model.generator.conditioner(batch, drop))
    for key, value in plain.items():
        assert value is None or torch.allclose(value.float(), whole[key].float(), atol=1e-5), key


@pytest.mark.parametrize("exact", [False, True])
def test_image_j_is_that_of_sampling_with_the_same_prompt_seed_and_place(exact: bool) -> None:
    model = tiny_models.model("digits")
    wanted = model.sample(["a red circle"] * 3, seed=5)
    served = Served(model, "digits", at_once=4, exact=exact)
    found = served.draw([Item(served.own, "a red circle", 5, place) for place in range(3)])
    assert np.abs(np.stack(found).astype(int) - wanted).max() <= 1
    other = served.draw([Item(served.own, "a red circle", 6, place) for place in range(3)])
    assert np.abs(np.stack(other).astype(int) - wanted).max() > 1


def test_what_the_model_does_not_take_is_refused_before_it_is_queued() -> None:
    served = Served(tiny_models.model("digits"), "digits", at_once=4)
    with pytest.raises(UserError, match="steps"):
        served.check(Way(10**6, 1.0), "a red circle")
    assert served.check(served.own, "a red circle " * 9) != "a red circle " * 9  # what is read of it
    free = Served(tiny_models.model("free"), "free", at_once=4)
    with pytest.raises(UserError, match="leave prompt empty"):
        free.check(free.own, "a red circle")
    assert len(free.draw([Item(free.own, "", 1, place) for place in range(2)])) == 2
