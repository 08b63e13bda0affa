"""The generator and its codec: shapes, the way in and the way out."""

import copy

import torch
from torch import nn

from lmsd.models.backbones import mlp
from lmsd.models.codec import Identity, bounded
from lmsd.models.conditioner import LabelConditioner
from lmsd.models.frozen import freeze, twin
from lmsd.models.generator import Generator
from lmsd.process import Flow, Process
from lmsd.types import Batch

IMAGES = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_pixels_are_diffused_as_they_are():
    generator = Generator(mlp(1, 8), Process(Flow()))
    assert isinstance(generator.codec, Identity)
    assert generator.shape == generator.image_shape == (1, 8, 8)
    assert generator.bound == 1.0
    batch = Batch(
        IMAGES, torch.arange(3), text=["a"] * 3, extra={"rejected": -IMAGES, "other": torch.ones(3)}
    )
    encoded = generator.encode(batch)
    assert torch.equal(encoded.x, batch.x)
    assert torch.equal(encoded.extra["rejected"], -IMAGES)
    assert encoded.text == batch.text
    assert torch.equal(generator.decode(3 * IMAGES), (3 * IMAGES).clamp(-1, 1))


def test_a_bound_cuts_values_and_no_gradients():
    x = torch.tensor([-3.0, 0.25, 3.0], requires_grad=True)
    inside = bounded(x, 1.0)
    assert inside.tolist() == [-1.0, 0.25, 1.0]
    inside.sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 1.0]
    assert bounded(x, None) is x


def test_a_twin_has_weights_of_its_own_and_shares_what_is_frozen():
    conditioner = LabelConditioner(3, 6)
    conditioner.encoder = freeze(nn.Linear(2, 2), saved=False)
    generator = Generator(mlp(1, 4, pooled_dim=6), Process(Flow()), conditioner=conditioner)
    other, whole = twin(generator), copy.deepcopy(generator)
    assert other.conditioner.encoder is conditioner.encoder
    assert whole.conditioner.encoder is not conditioner.encoder
    for kept, own in zip(generator.parameters(), other.parameters(), strict=True):
        assert torch.equal(kept, own)
        assert kept.data_ptr() != own.data_ptr()
    other.double()  # as a move to a device does: both still hold the same
    assert other.conditioner.encoder.weight is conditioner.encoder.weight
