"""Cut nets: what is zero is not missed, what is masked counts as if it were cut, wrong cuts are refused."""

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import torch
from test_backbones import MAKERS, READS_TOKENS, randomized
from torch import Tensor, nn

from lmsd import spec
from lmsd.errors import UserError
from lmsd.models.backbones import MLPBackbone
from lmsd.models.cut import axes, cut, further, module_of, take_out
from lmsd.tuning.pruning import Unit, left_out, units
from lmsd.types import Cond, Sizes

POOLED, TEXT, Z = 6, 12, 4


def made(name: str) -> nn.Module:
    return randomized(MAKERS[name]()).eval()


@torch.no_grad()
def answer(name: str, net: nn.Module) -> Tensor:
    torch.manual_seed(5)
    x, time, z = torch.randn(3, 3, 16, 16), torch.rand(3), torch.randn(3, Z)
    if name == "dit_label":
        return net(x, time, Cond(label=torch.tensor([0, 2, 5])))
    tokens = {"tokens": torch.randn(3, 5, TEXT), "mask": torch.arange(5) < torch.tensor([[2], [5], [3]])}
    cond = Cond(pooled=torch.randn(3, POOLED), **(tokens if name in READS_TOKENS else {}))
    return net(x, time, cond, z)


def kept(net: nn.Module, unit: Unit) -> Mapping[str, list[int]]:
    axis = axes(net)[unit.place]
    if axis is None:
        return {unit.place: []}
    count = axis.units(module_of(net, unit.place))
    return {unit.place: [each for each in range(count) if each not in unit.units]}


@pytest.mark.parametrize("name", MAKERS)
def test_every_unit_that_is_taken_out_does_what_its_absence_did(name: str) -> None:
    """One unit of every axis, and every block: the cut net and the masked one agree to 1e-5."""
    net, places = made(name), set[str]()
    whole = answer(name, net)
    for unit in units(net):
        if unit.place in places:
            continue
        places.add(unit.place)
        with left_out(net, unit):
            masked = answer(name, net)
        less = copy.deepcopy(net)
        take_out(less, kept(net, unit))
        assert torch.allclose(answer(name, less), masked, atol=1e-5), unit
        before, after = (sum(p.numel() for p in each.parameters()) for each in (net, less))
        assert after < before, unit
    assert torch.equal(answer(name, net), whole), "the masks are gone"
    kinds = {place.partition(":")[2] for place in places}
    assert kinds >= ({"hidden"} if name == "mlp" else {"heads"})
    assert "block" in kinds


@pytest.mark.parametrize("name", MAKERS)
def test_taking_out_what_is_zero_changes_nothing(name: str) -> None:
    """Half of every axis is zero in what reads it, and goes: to 1e-6 of the largest value."""
    net, gone = made(name), dict[str, list[int]]()
    with torch.no_grad():
        for place, axis in axes(net).items():
            if axis is not None and axis.units(module_of(net, place)) > 1:
                module: Any = module_of(net, place)
                count = axis.units(module)
                for layer in axis.read:
                    module.get_submodule(layer).weight[:, axis.rows(module, range(count // 2))] = 0.0
                gone[place] = list(range(count // 2, count))
    whole = answer(name, net)
    take_out(net, gone)
    assert gone
    assert (answer(name, net) - whole).abs().max() <= 1e-6 * whole.abs().max()


def test_a_cut_net_is_rebuilt_from_its_spec_and_takes_its_weights() -> None:
    inner = {"_target_": "lmsd.models.backbones.MLPBackbone", "width": 16, "depth": 2, "_partial_": True}
    left = {"model/blocks/0:hidden": [1, 4, 5], "model/blocks/1:block": []}
    sizes = Sizes(3, 16, pooled_dim=POOLED, z_dim=Z)
    node = {"_target_": "lmsd.models.cut.cut", "inner": inner, "kept": left}
    one, two = (spec.build(node, sizes=sizes) for _ in range(2))
    two.load_state_dict(randomized(one).state_dict())
    assert torch.equal(answer("mlp", one.eval()), answer("mlp", two.eval()))
    assert one.model.blocks[0].inside.out_features == 3


def test_a_cut_of_a_cut_is_one_cut_of_the_whole() -> None:
    first = {"model/blocks/0:hidden": [2, 3, 7, 9], "model/blocks/1:hidden": [0, 5]}
    then = {"model/blocks/0:hidden": [1, 3], "model/blocks/2:block": []}
    both = further(first, then)
    assert both["model/blocks/0:hidden"] == [3, 9]
    net = randomized(MLPBackbone(Sizes(3, 16, pooled_dim=POOLED, z_dim=Z), width=16, depth=3, time_dim=16))
    twice, once = copy.deepcopy(net), copy.deepcopy(net)
    take_out(twice, first)
    take_out(twice, then)
    take_out(once, both)
    assert torch.equal(answer("mlp", twice.eval()), answer("mlp", once.eval()))


@pytest.mark.parametrize(
    ("left", "said"),
    [
        ({"model/blocks/7:hidden": [0]}, "this net has nothing at model/blocks/7:hidden"),
        ({"model/blocks/0:heads": [0]}, "this net has nothing at model/blocks/0:heads"),
        ({"model/blocks/0:hidden": []}, "has 16 units, kept in order, one at least"),
        ({"model/blocks/0:hidden": [16]}, "has 16 units"),
        ({"model/blocks/0:hidden": [3, 2]}, "has 16 units"),
        ({"model/blocks/0:hidden": [-1]}, "has 16 units"),
    ],
    ids=["block", "axis", "none", "beyond", "order", "negative"],
)
def test_a_cut_that_does_not_fit_is_refused(left: Mapping[str, list[int]], said: str) -> None:
    with pytest.raises(UserError, match=said):
        cut(partial(MLPBackbone, width=16), kept=left, sizes=Sizes(3, 16))
