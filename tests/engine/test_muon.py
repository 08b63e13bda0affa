"""Muon: orthogonal updates of hidden matrices, AdamW's of the rest, and the states of both."""

import copy
from pathlib import Path

import pytest
import tiny_run
import torch
from torch import nn

from lmsd.engine.callbacks import Checkpoint
from lmsd.engine.module import Engine
from lmsd.engine.muon import QUINTIC, Muon, hidden, orthogonal
from lmsd.engine.optim import adamw


class Small(nn.Module):
    """One of each kind of weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(40, 40)
        self.stem = nn.Conv2d(3, 48, 3)
        self.inner = nn.Conv2d(48, 40, 3)
        self.last = nn.Linear(40, 64)
        self.frozen = nn.Linear(64, 64).requires_grad_(False)
        self.position = nn.Parameter(torch.randn(64, 64))


def trained(net: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        torch.manual_seed(seed)
        for parameter in net.parameters():
            parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
        optimizer.step()


def made(net: nn.Module, **options: float) -> Muon:
    optimizer = Muon([p for p in net.parameters() if p.requires_grad], **options)
    optimizer.choose(net)
    return optimizer


@pytest.mark.parametrize("shape", [(32, 48), (96, 32), (64, 64)])
def test_singular_values_become_one_and_directions_stay(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    matrix = torch.randn(shape)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    turned = orthogonal(1e3 * matrix)
    expected = s / s.norm()
    a, b, c = QUINTIC
    for _ in range(5):
        expected = a * expected + b * expected**3 + c * expected**5
    torch.testing.assert_close(u.T @ turned @ v.T, expected.diag(), atol=1e-4, rtol=0)
    large = expected[s > s.norm() / 100]
    assert len(large) > 30
    assert 0.65 < large.min() <= large.max() < 1.25


def test_what_is_hidden() -> None:
    net = Small()
    assert [id(w) for w in hidden(net, 32)] == [id(net.inner.weight), id(net.last.weight)]
    assert [id(w) for w in hidden(net, 41)] == []
    optimizer = made(net)
    rest, matrices = (group["params"] for group in optimizer.param_groups)
    assert len(rest) + len(matrices) == sum(p.requires_grad for p in net.parameters())
    assert {id(p) for p in matrices} == {id(net.inner.weight), id(net.last.weight)}


def test_matrices_move_as_torchs_muon_moves_them() -> None:
    """torch's own works in bfloat16, ours on a CPU in float32: equal up to that."""
    net = Small()
    other = copy.deepcopy(net)
    weights = [other.last.weight]
    theirs = torch.optim.Muon(
        weights, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    before = net.last.weight.detach().clone()
    ours = made(net, lr=0.02, weight_decay=0.1)
    for seed in range(3):
        trained(net, ours, range(seed, seed + 1))
        other.last.weight.grad = net.last.weight.grad
        theirs.step()
        moved, expected = net.last.weight - before, other.last.weight - before
        assert nn.functional.cosine_similarity(moved.flatten(), expected.flatten(), dim=0) > 0.999
        torch.testing.assert_close(moved.norm(), expected.norm(), rtol=0.02, atol=0)


def test_a_kernel_moves_as_the_matrix_of_its_outputs() -> None:
    net = Small()
    flat = nn.Linear(48 * 9, 40)
    with torch.no_grad():
        flat.weight.copy_(net.inner.weight.flatten(1))
    kernels, matrices = made(net), made(flat)
    trained(net, kernels, range(1))
    flat.weight.grad = net.inner.weight.grad.flatten(1)
    matrices.step()
    torch.testing.assert_close(net.inner.weight.flatten(1), flat.weight)


def test_the_rest_moves_as_adamw_moves_it() -> None:
    net = Small()
    other = copy.deepcopy(net)
    ours, theirs = (
        made(net, lr=0.01, weight_decay=0.1),
        torch.optim.AdamW(other.parameters(), 0.01, betas=(0.9, 0.99), weight_decay=0.1, fused=True),
    )
    trained(net, ours, range(3))
    trained(other, theirs, range(3))
    for name in ("words.weight", "stem.weight", "last.bias", "position"):
        assert torch.equal(net.get_parameter(name), other.get_parameter(name))
    assert not torch.equal(net.last.weight, other.last.weight)


def test_what_has_no_gradient_does_not_move() -> None:
    net = Small()
    optimizer = made(net, weight_decay=0.1)
    optimizer.step()
    assert not optimizer.state
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), Small().parameters(), strict=True))


def test_the_state_comes_back_to_the_last_bit() -> None:
    whole, parts = Small(), Small()
    trained(whole, made(whole), range(4))
    first = made(parts)
    trained(parts, first, range(2))
    again = made(parts)
    again.load_state_dict(copy.deepcopy(first.state_dict()))
    trained(parts, again, range(2, 4))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))


def engine() -> Engine:
    """A warm start, the discriminator alone, and a game; the generator by Muon."""
    makers = {"generator": lambda p: Muon(p, lr=1e-2, smallest=8), "discriminator": adamw}
    return tiny_run.engine("recipe", batches=8, optimizers=makers, ema=(16,))


@pytest.mark.parametrize("images", [16, 48])
def test_a_run_that_is_resumed_ends_the_same(tmp_path: Path, images: int) -> None:
    """Within the warm start, and after the fresh state with which the game begins."""
    whole, rest = engine(), engine()
    tiny_run.run(whole, tmp_path / "whole", callbacks=[Checkpoint(every_images=16, keep_last=9)])
    rest_of = tmp_path / "whole" / "checkpoints" / f"step_{images:09d}.ckpt"
    tiny_run.run(rest, tmp_path / "rest", resume_from=rest_of)
    assert len(whole.optimizers_by_role["generator"].param_groups[1]["params"]) > 4
    for (name, ours), theirs in zip(whole.named_parameters(), rest.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
