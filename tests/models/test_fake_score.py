"""The fake score: a twin of the generator, judged by heads on its own features."""

import pytest
import torch
from torch import nn

from lmsd.errors import UserError
from lmsd.models.backbones import MLPBackbone
from lmsd.models.conditioner import LabelConditioner
from lmsd.models.fake_score import FakeScore
from lmsd.models.frozen import freeze
from lmsd.models.generator import Generator
from lmsd.process import Flow, Process
from lmsd.types import Batch, Cond, Sizes


def generator(depth=3):
    torch.manual_seed(0)
    net = MLPBackbone(Sizes(1, 4, pooled_dim=6, z_dim=3), width=12, depth=depth, time_dim=8)
    made = Generator(net, Process(Flow()), prediction="x0", conditioner=LabelConditioner(3, 6), z_dim=3)
    for parameter in made.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return made


def inputs(count=5):
    torch.manual_seed(1)
    cond = Cond(pooled=torch.randn(count, 6))
    return torch.randn(count, 1, 4, 4), torch.rand(count), cond, torch.randn(count, 3)


@pytest.mark.parametrize("output", ["x0", "native"])
def test_it_begins_as_the_generators_twin(output):
    own = generator()
    fake = FakeScore(own, cond_dim=6, width=8)
    x, t, cond, z = inputs()
    found, logits = fake(x, t, cond, z, output=output)
    assert torch.equal(found, own(x, t, cond, z, output=output))
    assert logits.shape == (5, len(own.net.taps))
    assert {id(p) for p in fake.parameters()}.isdisjoint({id(p) for p in own.parameters()})
    batch = Batch(x, torch.arange(5), label=torch.tensor([0, 1, 2, 0, 1]))
    assert torch.equal(fake.condition(batch).pooled, own.condition(batch).pooled)


def test_what_is_frozen_is_shared():
    own = generator()
    freeze(own.conditioner, saved=True)
    assert FakeScore(own, cond_dim=6).score.conditioner is own.conditioner


def test_heads_read_the_features_of_the_same_pass():
    own = generator()
    fake = FakeScore(own, cond_dim=0, width=8, taps=["model.blocks.1"])
    x, t, cond, z = inputs()
    caught = []
    handle = fake.score.net.model.blocks[1].register_forward_hook(lambda *args: caught.append(args[2]))
    _, logits = fake(x, t, cond, z)
    handle.remove()
    assert len(caught) == 1, "one pass of the net"
    torch.testing.assert_close(logits, fake.heads[0](fake.taps[0](caught[0][:, None])))


def test_logits_teach_heads_trunk_and_image():
    fake = FakeScore(generator(), cond_dim=6, width=8)
    x, t, cond, z = inputs()
    x.requires_grad_()
    heads = [p for module in (fake.taps, fake.heads) for p in module.parameters()]
    fake(x, t, cond, z)[1].sum().backward()
    assert x.grad.abs().min() > 0
    assert all(p.grad is not None for p in heads)
    assert fake.score.net.model.blocks[0].inside.weight.grad.abs().sum() > 0


def test_a_net_without_taps_is_refused():
    class Bare(nn.Module):
        channels, image_size, token_dim, pooled_dim, z_dim = 1, 4, 0, 0, 0

        def forward(self, x, time, cond, z=None):
            return x

    with pytest.raises(UserError, match="no taps"):
        FakeScore(Generator(Bare(), Process(Flow())), cond_dim=0)
    with pytest.raises(UserError, match="no such taps"):
        FakeScore(generator(), cond_dim=6, taps=["model.block"])
