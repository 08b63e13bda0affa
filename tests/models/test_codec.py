"""The generator and its codec: shapes, the way in and the way out."""

import copy
import math

import pytest
import torch
from torch import nn

from lmsd.errors import UserError
from lmsd.models.backbones import MLPBackbone
from lmsd.models.codec import Identity, Unshuffle, bounded
from lmsd.models.conditioner import LabelConditioner
from lmsd.models.frozen import freeze, twin
from lmsd.models.generator import Generator
from lmsd.process import Flow, Process
from lmsd.types import Batch, Sizes

IMAGES = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_pixels_are_diffused_as_they_are():
    generator = Generator(MLPBackbone(Sizes(1, 8)), Process(Flow()))
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
    generator = Generator(MLPBackbone(Sizes(1, 4, pooled_dim=6)), Process(Flow()), conditioner=conditioner)
    other, whole = twin(generator), copy.deepcopy(generator)
    assert other.conditioner.encoder is conditioner.encoder
    assert whole.conditioner.encoder is not conditioner.encoder
    for kept, own in zip(generator.parameters(), other.parameters(), strict=True):
        assert torch.equal(kept, own)
        assert kept.data_ptr() != own.data_ptr()
    other.double()  # as a move to a device does: both still hold the same
    assert other.conditioner.encoder.weight is conditioner.encoder.weight


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (2.0, 0.0), (0.25, 0.0), (1.7, 0.3), (0.9, -0.4)])
def test_unshuffling_is_undone(scale, shift):
    """All 256 levels: bit for bit where the arithmetic is exact, else far within a level."""
    x = (torch.arange(256) / 127.5 - 1.0).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    codec = Unshuffle(4, scale=scale, shift=shift)
    z = codec.encode(x)
    assert z.shape[1:] == codec.shape_of((3, 16, 16)) == (48, 4, 4)
    assert codec.image_shape_of((48, 4, 4)) == (3, 16, 16)
    if shift == 0.0 and math.log2(scale).is_integer():
        assert torch.equal(codec.decode(z), x)
    torch.testing.assert_close(codec.decode(z), x, rtol=0, atol=1e-6)
    assert z.abs().max() <= codec.bound
    assert z.abs().max() == pytest.approx(codec.bound)  # and no smaller bound would do


def test_a_posterior_does_not_see_the_grid():
    """With scale 1 and shift 0 pixels are only moved: every draw is the moved draw of pixels."""
    codec, process = Unshuffle(2), Process(Flow())
    x, x_t = IMAGES, torch.randn_like(IMAGES)
    s, t = torch.full((3,), 0.3), torch.full((3,), 0.8)
    pixels = process.posterior(x, x_t, s, t)
    moved = process.posterior(codec.encode(x), codec.encode(x_t), s, t)
    eps = torch.randn_like(x)
    assert torch.equal(codec.decode(moved.sample(codec.encode(eps))), pixels.sample(eps))


def test_a_generator_in_latents_knows_both_shapes():
    generator = Generator(MLPBackbone(Sizes(4, 4)), Process(Flow()), codec=Unshuffle(2, scale=0.5))
    assert (generator.shape, generator.image_shape, generator.bound) == ((4, 4, 4), (1, 8, 8), 0.5)
    batch = Batch(IMAGES, torch.arange(3), extra={"rejected": -IMAGES})
    encoded = generator.encode(batch)
    assert encoded.x.shape == encoded.extra["rejected"].shape == (3, 4, 4, 4)
    assert torch.equal(generator.decode(encoded.x), IMAGES)
    assert generator.decode(10.0 * encoded.x).abs().max() == 1.0


def test_other_latents_are_refused():
    first = Generator(MLPBackbone(Sizes(4, 4)), Process(Flow()), codec=Unshuffle(2))
    other = Generator(MLPBackbone(Sizes(4, 4)), Process(Flow()), codec=Unshuffle(2, scale=2.0))
    with pytest.raises(UserError, match=r"latents of scale 1.0, and this run's has 2.0"):
        other.load_state_dict(first.state_dict())
    with pytest.raises(UserError, match="10x10 pixels do not divide by its factor, 4"):
        Unshuffle(4).shape_of((1, 10, 10))
    for options, said in (
        ({"scale": 0.0}, r"scale=0\.0 a finite number above 0"),
        ({"scale": float("nan")}, "scale=nan a finite number above 0"),
        ({"scale": float("inf")}, "scale=inf a finite number above 0"),
        ({"shift": float("inf")}, "shift=inf a finite one"),
        ({"shift": float("nan")}, "shift=nan a finite one"),
    ):
        with pytest.raises(UserError, match=said):
            Unshuffle(2, **options)
