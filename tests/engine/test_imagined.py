"""Shapes in place of numbers: what is booked is what is allocated, and FLOPs are those of hand formulas."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from lmsd.engine.flops import Counter
from lmsd.engine.imagined import Imagined, NeedsNumbers, booked

B, L, D, H = 2, 96, 64, 4


def attention(x: Tensor) -> Tensor:
    q, k, v = (x.view(B, L, H, D // H).transpose(1, 2) for _ in range(3))
    return F.scaled_dot_product_attention(q, k, v)


CASES: dict[str, tuple[Callable[[], Any], tuple[int, ...], int, float]] = {
    # what, its input, FLOPs of a forward pass by hand, backward over forward
    "linear": (lambda: nn.Linear(D, 160), (B, L, D), 2 * B * L * D * 160, 2.0),
    "convolution": (lambda: nn.Conv2d(8, 24, 3, padding=1), (B, 8, 32, 32), 2 * B * 24 * 32**2 * 8 * 9, 2.0),
    "attention": (lambda: attention, (B, L, D), 2 * 2 * B * L * L * D, 2.5),
}


@pytest.mark.parametrize("name", CASES)
def test_flops_are_those_of_hand_formulas(name: str) -> None:
    make, shape, forward, backward = CASES[name]
    with Imagined() as made:
        layer, x = make(), made.like(shape).requires_grad_()
        with Counter() as counter:
            y = layer(x)
        assert counter.total == forward
        with Counter() as counter:
            y.sum().backward()
        assert counter.total == backward * forward


def test_flops_of_a_dit_block() -> None:
    from diffusers.models.attention import BasicTransformerBlock

    with Imagined() as made:
        block: Any = BasicTransformerBlock(
            D,
            H,
            D // H,
            norm_type="ada_norm_zero",
            num_embeds_ada_norm=10,
            activation_fn="gelu-approximate",
            attention_bias=True,
        )
        x, t = made.like((B, L, D)).requires_grad_(), torch.zeros(B, dtype=torch.int64)
        with Counter() as counter:
            y = block(x, timestep=t, class_labels=t)
    tokens = 2 * B * L * D * (4 * D + 2 * 4 * D)  # q, k, v and out; the two layers of width 4 D
    mixed = 2 * 2 * B * L * L * D
    modulated = 2 * B * (256 * D + D * D + 6 * D * D)  # the time's embedding, and six vectors of it
    assert counter.total == tokens + mixed + modulated
    assert y.shape == x.shape


def test_what_lives_is_booked_until_it_is_freed() -> None:
    size = 4 * 1024 * 1024
    with Imagined() as made:
        layer = nn.Linear(1024, 1024, bias=False)
        made.ledger.book("weights", layer.parameters())
        x = made.like((1024, 1024))
        made.ledger.mark()
        with booked(layer, made.ledger):
            y = layer(x).relu()  # the product is freed: relu keeps its own result
            assert made.ledger.live["activations"] == 2 * size
            assert made.ledger.most["activations"] == 3 * size
            y.sum().backward()
        assert made.ledger.live["gradients"] == size
        layer.weight.grad = None
        del x, y
        assert made.ledger.live == {
            "weights": size,
            "averages": 0,
            "optimizer": 0,
            "gradients": 0,
            "activations": 0,
        }


def test_small_tables_keep_their_numbers_and_large_ones_read_as_one() -> None:
    with Imagined() as made:
        table = torch.linspace(0.0, 1.0, 11)
        large = torch.zeros(200, 200)
        assert table.tolist()[-1] == 1.0
        assert table[5].item() == 0.5
        assert type(large) is FakeTensor
        assert type(large + table[0]) is FakeTensor
        assert large.sum().item() == 1.0
        assert bool((large > 0).all())
        with pytest.raises(NeedsNumbers, match="depends on numbers"):
            large.nonzero()
        assert made.like((2,)).shape == (2,)
