import copy
import math

import pytest
import torch
from torch import nn

from lmsd.errors import UserError
from lmsd.models.backbones import MLPBackbone
from lmsd.models.conditioner import LabelConditioner
from lmsd.models.discriminator import (
    Discriminator,
    ProjectionHead,
    TrunkDiscriminator,
    double_backward_obstacle,
)
from lmsd.models.generator import Generator
from lmsd.models.taps import tapped
from lmsd.nets.critics import ConvCritic, MLPCritic
from lmsd.process.gaussian import Process
from lmsd.process.schedules import EDM, Article
from lmsd.types import Cond, Sizes


def randomized(module: nn.Module, std: float = 0.2) -> nn.Module:
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=std)
    return module


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    t = torch.tensor([1.0, 2.0, 3.0, 4.0])
    return torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8), t - 1, t, Cond(pooled=torch.randn(4, 6))


def transition(trunk=MLPCritic, heads=1):
    trunk = trunk((2, 8, 8), time_dim=16, cond_dim=12)
    return randomized(
        Discriminator(trunk, process=Process(Article()), cond_dim=6, features=trunk.features, heads=heads),
        std=0.1,
    )


def trunk_discriminator(frozen=True, schedule=None, precondition="none"):
    net = MLPBackbone(Sizes(1, 8, pooled_dim=6, z_dim=3), width=16, depth=2, time_dim=16)
    process = Process(schedule or Article())
    generator = randomized(
        Generator(net, process, conditioner=LabelConditioner(3, 6), z_dim=3, precondition=precondition)
    )
    return generator, TrunkDiscriminator(generator, cond_dim=6, width=10, frozen=frozen)


def row(inputs, i):
    x_s, x_t, s, t, cond = inputs
    pick = slice(i, i + 1)
    return x_s[pick], None if x_t is None else x_t[pick], s[pick], t[pick], cond.map(lambda v: v[pick])


def test_projection_head_is_the_formula():
    torch.manual_seed(0)
    head = ProjectionHead(7, cond_dim=5, heads=3, projection=4)
    h, c = torch.randn(2, 7), torch.randn(2, 5)
    for b in range(2):
        for k in range(3):
            of_h = head.of_features.weight[4 * k : 4 * k + 4] @ h[b]
            of_c = head.of_cond.weight @ c[b] + head.of_cond.bias
            expected = head.linear.weight[k] @ h[b] + head.linear.bias[k] + (of_h @ of_c) / math.sqrt(4)
            torch.testing.assert_close(head(h, c)[b, k], expected)


@pytest.mark.parametrize("trunk", [MLPCritic, ConvCritic])
@pytest.mark.parametrize("which", ["x_s", "x_t", "s", "t", "text"])
def test_every_input_counts(trunk, which, inputs):
    critic = transition(trunk)
    moved = list(inputs)
    if which == "text":
        moved[4] = inputs[4].map(lambda v: v + 1)
    else:
        index = ["x_s", "x_t", "s", "t"].index(which)
        moved[index] = inputs[index] * 0.9 + 0.1 if index < 2 else inputs[index].flip(0)
    change = (critic(*inputs) - critic(*moved)).abs().min()
    assert change > 1e-5


def test_text_counts_in_the_trunk_and_in_the_head(inputs):
    critic = transition()
    nn.init.zeros_(critic.head.of_features.weight)
    moved = (*inputs[:4], inputs[4].map(lambda v: v + 1))
    through_trunk = (critic(*inputs) - critic(*moved)).abs().min()
    critic = transition()
    nn.init.zeros_(critic.embed_cond.weight)
    through_head = (critic(*inputs) - critic(*moved)).abs().min()
    assert through_trunk > 1e-5
    assert through_head > 1e-5


@pytest.mark.parametrize("heads", [1, 3])
def test_samples_do_not_mix(inputs, heads):
    critic = transition(heads=heads)
    together = critic(*inputs)
    assert together.shape == (4, heads)
    alone = torch.cat([critic(*row(inputs, i)) for i in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_inputs_of_any_size_are_brought_to_unit_size():
    """The same noise image at σ = 80 and at σ = 8 looks the same to the trunk, but for the time."""
    seen = []

    class Trunk(nn.Module):
        cond_dim = 4

        def forward(self, x, time, vec):
            seen.append(x)
            return x.flatten(1)

    critic = Discriminator(Trunk(), process=Process(EDM()), cond_dim=0, features=16, marginal=True)
    eps = torch.randn(3, 1, 4, 4)
    for sigma in (8.0, 80.0):
        s = torch.full((3,), sigma)
        critic(eps * math.sqrt(1 + sigma**2), None, s, s, Cond())
    torch.testing.assert_close(seen[0], eps, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(seen[0], seen[1], atol=1e-5, rtol=1e-5)


def test_logits_keep_float32_under_autocast(inputs):
    critic = transition()
    moved = (inputs[0] + 1e-3 * torch.randn_like(inputs[0]), *inputs[1:])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = critic(*inputs)
        features = critic.trunk(torch.cat([inputs[0], inputs[1]], 1), inputs[2], None)
    assert logits.dtype == torch.float32
    assert features.dtype == torch.bfloat16  # the trunk did run in few bits
    assert not torch.equal(logits, logits.bfloat16().float())
    assert not torch.equal(critic(*inputs), critic(*moved))


@pytest.mark.parametrize("marginal", [True, False])
def test_the_other_pairing_is_refused(marginal, inputs):
    trunk = MLPCritic((1 if marginal else 2, 8, 8), cond_dim=12)
    critic = Discriminator(trunk, process=Process(Article()), cond_dim=6, features=384, marginal=marginal)
    x_s, x_t, s, t, cond = inputs
    with pytest.raises(UserError, match="pairing"):
        critic(x_s, x_t if marginal else None, s, t, cond)


def test_missing_condition_is_refused(inputs):
    with pytest.raises(UserError, match="got none"):
        transition()(*inputs[:4], Cond())


def test_second_derivatives_are_announced_and_there(inputs):
    critic = transition()
    assert double_backward_obstacle(critic) is None
    x_s = inputs[0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x_s, *inputs[1:]).sum(), x_s, create_graph=True)
    gradient.square().sum().backward()
    assert critic.trunk.inside.weight.grad.abs().sum() > 0


def test_compiled_critic_says_that_it_has_none():
    critic = transition()
    critic.trunk.compile(backend="eager")
    assert "compiled" in double_backward_obstacle(critic)
    whole = transition()
    whole.compile(backend="eager")
    assert "compiled" in double_backward_obstacle(whole)


def test_trunk_features_are_the_generators():
    """A tap's features are what the generator's own block computes at the same input."""
    generator, critic = trunk_discriminator()
    x, s, cond = torch.randn(3, 1, 8, 8), torch.tensor([0.0, 1.0, 2.0]), Cond(pooled=torch.randn(3, 6))
    caught = []
    handle = generator.net.model.blocks[1].register_forward_hook(lambda *args: caught.append(args[2]))
    generator(x, s, cond, torch.zeros(3, 3))
    handle.remove()
    with tapped(critic.net, critic.names) as features:
        critic(x, None, s, s, cond)
    torch.testing.assert_close(features[1][:, 0], caught[0])


def test_trunk_sees_what_an_edm_generator_sees():
    generator, critic = trunk_discriminator(schedule=EDM(), precondition="edm")
    seen = []
    for net in (generator.net, critic.net):
        net.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x, s, cond = 50 * torch.randn(3, 1, 8, 8), torch.full((3,), 50.0), Cond(pooled=torch.randn(3, 6))
    generator(x, s, cond, torch.zeros(3, 3))
    critic(x, None, s, s, cond)
    torch.testing.assert_close(seen[0], seen[1])


def test_frozen_trunk_never_learns_but_lets_gradients_through():
    _, critic = trunk_discriminator()
    critic.requires_grad_(True)  # what a trainer does to its player
    names = {name for name, _ in critic.named_parameters()}
    assert not any(name.startswith("net.") for name in names)
    assert any(name.startswith("net.") for name in critic.state_dict())
    x = torch.randn(3, 1, 8, 8, requires_grad=True)
    s = torch.tensor([0.0, 1.0, 2.0])
    critic(x, None, s, s, Cond(pooled=torch.randn(3, 6))).sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is not None for p in critic.parameters())


def test_trainable_trunk_learns_apart_from_the_generator():
    generator, critic = trunk_discriminator(frozen=False)
    before = copy.deepcopy(generator.state_dict())
    optimizer = torch.optim.SGD(critic.parameters(), 0.1)
    s = torch.tensor([0.0, 1.0, 2.0])
    critic(torch.randn(3, 1, 8, 8), None, s, s, Cond(pooled=torch.randn(3, 6))).sum().backward()
    optimizer.step()
    assert not torch.equal(critic.net.model.inside.weight, generator.net.model.inside.weight)
    assert all(torch.equal(before[k], v) for k, v in generator.state_dict().items() if "extra" not in k)


def test_trunk_logits_are_one_a_tap_and_samples_do_not_mix(inputs):
    _, critic = trunk_discriminator()
    inputs = (inputs[0], None, *inputs[2:])
    together = critic(*inputs)
    assert together.shape == (4, 2)
    alone = torch.cat([critic(*row(inputs, i)) for i in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_trunk_state_comes_back(inputs):
    _, critic = trunk_discriminator()
    inputs = (inputs[0], None, *inputs[2:])
    _, other = trunk_discriminator()
    randomized(other, std=0.05)
    other.load_state_dict(critic.state_dict())
    assert torch.equal(critic(*inputs), other(*inputs))


def test_unknown_tap_is_refused():
    generator, _ = trunk_discriminator()
    with pytest.raises(UserError, match=r"model\.blocks\.0"):
        TrunkDiscriminator(generator, cond_dim=0, taps=["model.block.0"])
