"""The nets, ours and those of diffusers, behind one call. One file, for diffusers costs seconds to import."""

import copy
import re

import pytest
import torch
from torch import nn

from lmsd.errors import UserError
from lmsd.models import backbones
from lmsd.models.conditioner import Conditioner, LabelConditioner
from lmsd.models.conv_unet import ConvUNet
from lmsd.models.discriminator import TrunkDiscriminator, double_backward_obstacle
from lmsd.models.generator import Generator
from lmsd.models.uvit import UViT
from lmsd.process.gaussian import Process
from lmsd.process.schedules import Article
from lmsd.types import Batch, Cond, Sizes

TEXT, POOLED, Z = 12, 6, 4
SMALL = {"widths": (16, 32), "patch": 2}
MAKERS = {
    "unet_text": lambda: backbones.TextUNet(
        Sizes(3, 16, token_dim=TEXT, pooled_dim=POOLED, z_dim=Z), **SMALL, heads=2
    ),
    "unet_pooled": lambda: backbones.PooledUNet(
        Sizes(3, 16, pooled_dim=POOLED, z_dim=Z), **SMALL, head_dim=8
    ),
    "unet_conv": lambda: ConvUNet(
        Sizes(3, 16, pooled_dim=POOLED, z_dim=Z), **SMALL, blocks=(1, 2), heads=2, context=16
    ),
    "uvit": lambda: UViT(
        Sizes(3, 16, token_dim=TEXT, pooled_dim=POOLED, z_dim=Z),
        width=16,
        layers=5,
        heads=2,
        patch=4,
        context=16,
    ),
    "transformer_text": lambda: backbones.TextTransformer(
        Sizes(3, 16, token_dim=TEXT, z_dim=Z), patch=4, layers=2, heads=2, head_dim=8
    ),
    "dit_label": lambda: backbones.LabelTransformer(
        Sizes(3, 16), classes=5, patch=4, layers=2, heads=2, head_dim=8
    ),
    "mlp": lambda: backbones.MLPBackbone(
        Sizes(3, 16, pooled_dim=POOLED, z_dim=Z), width=16, depth=2, time_dim=16
    ),
}
READS_TOKENS = ("unet_text", "transformer_text", "uvit")


def randomized(net: nn.Module) -> nn.Module:
    """Give the layers that start at zero something to say."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return net


@pytest.fixture(scope="module", params=MAKERS)
def named(request):
    torch.manual_seed(0)
    return request.param, randomized(MAKERS[request.param]())


def over(net: nn.Module) -> Generator:
    """A generator whose conditioner has the widths that the net takes."""
    conditioner = Conditioner()
    conditioner.token_dim, conditioner.pooled_dim = net.token_dim, net.pooled_dim
    return Generator(net, Process(Article()), conditioner=conditioner, z_dim=net.z_dim)


def conditions(name: str, size: int = 4) -> Cond:
    torch.manual_seed(5)
    if name == "dit_label":
        return Cond(pooled=torch.randn(size, POOLED), label=torch.arange(size))
    mask = torch.arange(7) < torch.tensor([7, 3, 5, 2])[:size, None]
    tokens = torch.randn(size, 7, TEXT) if name in READS_TOKENS else None
    return Cond(tokens=tokens, mask=None if tokens is None else mask, pooled=torch.randn(size, POOLED))


def inputs(name: str):
    cond = conditions(name)
    torch.manual_seed(6)
    z = None if name == "dit_label" else torch.randn(4, Z)
    return torch.randn(4, 3, 16, 16), torch.tensor([0.0, 250.0, 600.0, 990.0]), cond, z


def least_change(one, two):
    return (one - two).abs().flatten(1).max(1).values.min().item()


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "mlp"])
def test_starts_at_zero(name):
    x, time, cond, z = inputs(name)
    assert torch.equal(MAKERS[name]()(x, time, cond, z), torch.zeros_like(x))


def test_everything_it_takes_counts(named):
    name, net = named
    x, time, cond, z = inputs(name)
    base = net(x, time, cond, z)
    assert base.shape == x.shape
    assert least_change(base, net(x + 0.1, time, cond, z)) > 1e-4
    assert least_change(base, net(x, time.flip(0), cond, z)) > 1e-4
    if net.z_dim:
        assert least_change(base, net(x, time, cond, z + 1)) > 1e-4
    if net.pooled_dim:
        moved = Cond(tokens=cond.tokens, mask=cond.mask, pooled=cond.pooled + 1)
        assert least_change(base, net(x, time, moved, z)) > 1e-4
    if net.token_dim:
        moved = Cond(tokens=cond.tokens.flip(2), mask=cond.mask, pooled=cond.pooled)
        assert least_change(base, net(x, time, moved, z)) > 1e-4
    if name == "dit_label":
        assert least_change(base, net(x, time, Cond(label=cond.label + 1), z)) > 1e-4


def test_samples_do_not_mix(named):
    name, net = named
    x, time, cond, z = inputs(name)
    together = net(x, time, cond, z)
    for i in range(4):
        row = slice(i, i + 1)
        alone = net(x[row], time[row], cond.map(lambda v, row=row: v[row]), None if z is None else z[row])
        torch.testing.assert_close(alone, together[row], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", READS_TOKENS)
def test_padding_does_not_count_and_real_tokens_do(name):
    net = randomized(MAKERS[name]())
    x, time, cond, z = inputs(name)
    noise = torch.randn_like(cond.tokens)
    padding = Cond(torch.where(cond.mask[:, :, None], cond.tokens, noise), cond.mask, cond.pooled)
    real = Cond(torch.where(cond.mask[:, :, None], noise, cond.tokens), cond.mask, cond.pooled)
    base = net(x, time, cond, z)
    torch.testing.assert_close(net(x, time, padding, z), base, atol=1e-6, rtol=1e-5)
    assert least_change(base, net(x, time, real, z)) > 1e-4


def test_training_mode_is_no_different(named):
    """No dropout of labels or activations of the library's own, which would draw from the global state."""
    name, net = named
    x, time, cond, z = inputs(name)
    before = torch.get_rng_state()
    out = net.train()(x, time, cond, z)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(out, net.eval()(x, time, cond, z))


def test_checkpointing_changes_nothing_but_memory(named):
    name, net = named
    x, time, cond, z = inputs(name)
    saved = {}

    def gradients(model, kind):
        saved[kind] = 0

        def count(tensor):
            saved[kind] += tensor.numel()
            return tensor

        model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            out = model(x, time, cond, z)
        out.square().sum().backward()
        return [out] + [p.grad for p in model.parameters() if p.grad is not None]

    plain = gradients(net, "plain")
    lean = copy.deepcopy(net)
    lean.enable_gradient_checkpointing()
    for a, b in zip(plain, gradients(lean, "lean"), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert saved["lean"] < saved["plain"]


def test_gradients_reach_the_inputs(named):
    """An adversary and a policy gradient need ∂/∂x_t, ∂/∂z and ∂/∂tokens."""
    name, net = named
    x, time, cond, z = inputs(name)
    leaves = [
        v.requires_grad_()
        for v in (x, z, cond.tokens, cond.pooled if net.pooled_dim else None)
        if v is not None
    ]
    net(x, time, cond, z).square().sum().backward()
    assert all(leaf.grad.abs().sum() > 0 for leaf in leaves)


def test_trunk_discriminator_on_every_backbone(named):
    name, net = named
    critic = TrunkDiscriminator(over(net), cond_dim=POOLED, width=8)
    x, _, cond, _ = inputs(name)
    s = torch.tensor([0.0, 1.0, 2.0, 3.0])
    logits = critic(x, None, s, s + 1, cond)
    assert logits.shape == (4, len(net.taps))
    moved = critic(x + 0.1, None, s, s + 1, cond)
    assert (logits - moved).abs().min() > 1e-6


@pytest.mark.parametrize("name", ["unet_text", "unet_pooled", "transformer_text"])
def test_fused_attention_says_that_it_has_no_second_derivatives(name):
    net = randomized(MAKERS[name]())
    critic = TrunkDiscriminator(over(net), cond_dim=0, width=8)
    assert "attention" in double_backward_obstacle(critic)
    x, _, cond, _ = inputs(name)
    s = torch.tensor([0.0, 1.0, 2.0, 3.0])
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x, None, s, s, cond).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="attention"):  # what the announcement saves the user from
        gradient.square().sum().backward()


def test_dit_takes_labels_from_a_conditioner_and_null_where_dropped():
    net = randomized(MAKERS["dit_label"]())
    generator = Generator(net, Process(Article()), conditioner=LabelConditioner(5, POOLED))
    batch = Batch(torch.randn(2, 3, 16, 16), torch.arange(2), label=torch.tensor([1, 4]))
    t = torch.tensor([4.0, 4.0])
    null = generator.condition(batch, torch.tensor([True, True]))
    kept = generator.condition(batch, torch.tensor([False, True]))
    assert null.label.tolist() == [5, 5]
    out, dropped = generator(batch.x, t, kept), generator(batch.x, t, null)
    torch.testing.assert_close(out[1], dropped[1])
    assert (out[0] - dropped[0]).abs().max() > 1e-4


def test_dit_refuses_text():
    net = MAKERS["dit_label"]()
    x, time, _, _ = inputs("dit_label")
    with pytest.raises(UserError, match="cannot read text"):
        net(x, time, conditions("unet_text"), None)
    with pytest.raises(UserError, match="got none"):
        net(x, time, Cond(), None)


def test_nets_without_text_need_none():
    x, time, _, _ = inputs("unet_text")
    for net in (
        backbones.TextUNet(Sizes(3, 16), **SMALL, heads=2),
        backbones.PooledUNet(Sizes(3, 16), **SMALL, head_dim=8),
        ConvUNet(Sizes(3, 16), **SMALL, heads=2, context=16),
        UViT(Sizes(3, 16), width=16, layers=2, heads=2, registers=0, context=16),
        backbones.TextTransformer(Sizes(3, 16), patch=4, layers=1, heads=2, head_dim=8),
    ):
        assert randomized(net)(x, time, Cond(), None).abs().sum() > 0


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("side 20 does not divide by patch 4 times 2^1", lambda: backbones.TextUNet(Sizes(3, 20), patch=4)),
        (
            "side 18 does not divide by patch 4",
            lambda: backbones.LabelTransformer(Sizes(3, 18), classes=2, patch=4),
        ),
        ("side 18 does not divide by patch 2 times 2^1", lambda: ConvUNet(Sizes(3, 18))),
        ("widths names 2 levels, blocks 1", lambda: ConvUNet(Sizes(3, 16), blocks=[1])),
        ("the last width, 128, does not divide by 3 heads", lambda: ConvUNet(Sizes(3, 16), heads=3)),
        ("side 15 does not divide by patch 2", lambda: UViT(Sizes(3, 15))),
        ("the width, 192, does not divide by 5 heads", lambda: UViT(Sizes(3, 16), heads=5)),
        ("attention names 1 levels, widths 2", lambda: backbones.PooledUNet(Sizes(3, 16), attention=[True])),
    ],
)
def test_sizes_that_do_not_fit_are_refused(message, make):
    with pytest.raises(UserError, match=re.escape(message)):
        make()


@pytest.mark.parametrize("name", ["unet_text", "transformer_text", "uvit", "unet_pooled", "unet_conv", "mlp"])
def test_missing_text_is_refused(name):
    x, time, _, z = inputs(name)
    with pytest.raises(UserError, match="got none"):
        MAKERS[name]()(x, time, Cond(), z)


def test_uvit_starts_without_blocks_and_skips():
    """Blocks and long skips begin as the identity: the head sees the stem, whatever the depth."""
    deep = MAKERS["uvit"]()
    nn.init.normal_(deep.head.weight)
    x, time, cond, z = inputs("uvit")
    before = deep(x, time, cond, z)
    deep.blocks, deep.mix = nn.ModuleList(), nn.ModuleList()
    torch.testing.assert_close(deep(x, time, cond, z), before)


def test_uvit_skips_carry_the_first_half_into_the_last_block():
    net = randomized(MAKERS["uvit"]())
    x, time, cond, z = inputs("uvit")
    seen = {}
    net.blocks[0].register_forward_hook(lambda module, args, out: seen.update(first=out))
    net.mix[1].register_forward_pre_hook(lambda module, args: seen.update(last=args[0]))
    net(x, time, cond, z)
    torch.testing.assert_close(seen["last"], seen["first"])


def test_uvit_has_second_derivatives():
    net = randomized(MAKERS["uvit"]())
    critic = TrunkDiscriminator(over(net), cond_dim=0, width=8)
    assert double_backward_obstacle(critic) is None
    x, _, cond, _ = inputs("uvit")
    s = torch.tensor([0.0, 1.0, 2.0, 3.0])
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x, None, s, s, cond).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), x)
    assert second.abs().sum() > 0
