"""A twin is a copy of what learns, and shares what is frozen, on every device."""

import torch
from torch import nn

from lmsd.models.frozen import freeze, twin


class Reader(nn.Module):
    """A frozen encoder, a frozen parameter and a layer that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = freeze(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), saved=False)
        self.scale = nn.Parameter(torch.ones(3), requires_grad=False)
        self.layer = nn.Linear(3, 1)
        self.register_buffer("count", torch.zeros(()))


def test_what_is_frozen_is_shared_and_the_rest_is_not() -> None:
    first = Reader()
    second = twin(first)
    assert second.encoder is first.encoder
    assert second.scale is first.scale
    assert second.layer.weight is not first.layer.weight
    assert second.count is not first.count
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])


def test_it_is_still_shared_after_both_have_moved() -> None:
    """A device is as another type here: both make new buffers."""
    first = Reader()
    both = nn.ModuleList([first, twin(first)]).double()
    assert first.encoder[0].weight.dtype == torch.float64
    assert both[1].encoder[0].weight is first.encoder[0].weight
    assert both[1].scale.data_ptr() == first.scale.data_ptr()
