"""What is taken out of a net: what is zero first, as many FLOPs as asked, never all of an axis."""

import copy
from functools import partial
from typing import Any

import pytest
import torch

from lmsd.errors import UserError
from lmsd.models.backbones import MLPBackbone
from lmsd.models.conditioner import LabelConditioner
from lmsd.models.conv_unet import ConvUNet
from lmsd.models.generator import Generator
from lmsd.models.uvit import UViT
from lmsd.process.gaussian import Process
from lmsd.process.schedules import Article
from lmsd.tuning.pruning import Probe, chosen, flops, probe, smaller, units, without
from lmsd.types import Batch, Sizes

NETS: dict[str, Any] = {
    "mlp": partial(MLPBackbone, width=64, depth=4, time_dim=16),
    "unet_conv": partial(ConvUNet, widths=(16, 32), blocks=(1, 1), heads=2, context=16),
    "uvit": partial(UViT, width=32, layers=4, heads=4, patch=4, context=16),
}


def made(name: str) -> tuple[Generator, Probe]:
    """A generator of labels whose layers all have something to say, and noisy images to measure it on."""
    torch.manual_seed(1)
    net = NETS[name](Sizes(1, 8, pooled_dim=8))
    generator = (
        Generator(net, Process(Article(4)), conditioner=LabelConditioner(3, 8)).eval().requires_grad_(False)
    )
    with torch.no_grad():
        for parameter in generator.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    batch = Batch(torch.rand(16, 1, 8, 8) * 2 - 1, torch.arange(16), label=torch.arange(16) % 3)
    return generator, probe(generator, batch, torch.tensor(generator.process.schedule.grid(4)[:-1]))


@pytest.mark.parametrize("name", NETS)
@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.3])
def test_the_flops_fall_by_the_asked_share(name: str, share: float) -> None:
    """At least by it, and by no unit more; counted anew on the net that is built of what is kept."""
    generator, seen = made(name)
    found = chosen(generator, seen, share, rounds=2, told=lambda text: None)
    small = smaller(generator, found.kept)
    assert flops(generator, seen) == found.before
    assert flops(small, seen) == found.after
    assert found.after <= (1 - share) * found.before
    assert found.after > (1 - share - 0.2) * found.before, "a block of these nets is a fifth at most"
    assert small(seen.x_t, seen.t, seen.cond, seen.z).isfinite().all()


def test_what_is_zero_goes_first_and_is_not_missed() -> None:
    """Half of the channels of two blocks say nothing: 10 % of the FLOPs cost nothing at all."""
    generator, seen = made("mlp")
    net: Any = generator.net
    with torch.no_grad():
        for block in net.model.blocks[:2]:
            block.outside.weight[:, ::2] = 0.0
    found = chosen(generator, seen, 0.05, rounds=1, told=lambda text: None)
    places = {(unit.place, each) for unit, _ in found.order for each in unit.units}
    assert places
    assert all(
        place.startswith(("model/blocks/0", "model/blocks/1")) and not each % 2 for place, each in places
    )
    assert all(score == 0.0 for _, score in found.order)
    assert torch.allclose(seen.estimate(smaller(generator, found.kept)), seen.estimate(generator), atol=1e-6)


@pytest.mark.parametrize("name", ["mlp", pytest.param("unet_conv", marks=pytest.mark.slow)])
def test_what_goes_first_changes_least_for_its_flops(name: str) -> None:
    """Every unit cut out physically, by itself: none has less change a FLOP than the one that goes first."""
    generator, seen = made(name)
    whole, cost = seen.estimate(generator), flops(generator, seen)
    change = {}
    for unit in units(generator.net):
        less = smaller(generator, without(generator, {}, unit))
        square = (seen.estimate(less) - whole).double().square().mean()
        change[unit] = float(square) / (cost - flops(less, seen))
    unit, score = chosen(generator, seen, 0.001, rounds=1, told=lambda text: None).order[0]
    assert score == pytest.approx(change[unit], rel=0.05)
    assert change[unit] <= 1.05 * min(change.values())


def test_the_same_net_is_cut_alike_and_stays_as_it_was() -> None:
    generator, seen = made("uvit")
    before = copy.deepcopy(generator.state_dict())
    one, two = (chosen(generator, seen, 0.2, told=lambda text: None).kept for _ in range(2))
    assert one == two
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())


def test_more_than_a_net_can_spare_is_refused() -> None:
    generator, seen = made("mlp")
    with pytest.raises(UserError, match=r"can be saved at most: ask for less, prune=0\.\d\d"):
        chosen(generator, seen, 0.9, rounds=1, told=lambda text: None)
    with pytest.raises(UserError, match="prune=0 is the share of FLOPs"):
        chosen(generator, seen, 0.0)
