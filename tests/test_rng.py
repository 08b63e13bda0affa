"""Counter-based numbers: their distributions, and each coordinate of the counter makes its own stream."""

import ast
import math
from itertools import combinations
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import Tensor

from lmsd.rng import Rng, fold, mix64

SEEDS = [0, 1, 20261123, 2**40 + 7]


def many(count: int) -> Tensor:
    return torch.arange(count)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", [(1,), (64,)])
def test_uniform_is_uniform(seed, shape):
    """Across positions (one number each) and within a position (64 each)."""
    u = Rng(seed, many(65_536 // shape[0])).uniform(shape, "u")
    assert u.dtype == torch.float32
    assert u.min() >= 0
    assert u.max() < 1
    assert stats.kstest(u.double().flatten().numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", [(1,), (63,), (4, 4, 4)])
def test_normal_is_normal(seed, shape):
    count = math.prod(shape)
    x = Rng(seed, many(65_536 // count)).normal(shape, "x")
    assert x.shape[1:] == shape
    assert x.dtype == torch.float32
    assert stats.kstest(x.double().flatten().numpy(), "norm").pvalue > 1e-3


def test_normal_has_its_tails():
    """Of 4 million numbers, 2 Q(4) = 6.33e-5 of them lie beyond 4: 265.7 expected, Poisson."""
    x = Rng(2, many(4096)).normal((1024,), "x")
    beyond = int((x.abs() > 4).sum())
    assert abs(beyond - 265.7) < 4.5 * math.sqrt(265.7)
    assert x.abs().max() < math.sqrt(2 * 25 * math.log(2)) + 1e-3  # 24 bits reach 5.9


def test_integers_are_even_and_bounded():
    k = Rng(0, many(30_000)).integer(-3, 7, (2,), "k")
    assert k.dtype == torch.int64
    assert (k.min(), k.max()) == (-3, 6)
    assert stats.chisquare(torch.bincount(k.flatten() + 3).numpy()).pvalue > 1e-3


def streams() -> dict[str, Tensor]:
    """Streams that differ in one coordinate each, as normal numbers [N], N = 2^17."""
    position = many(2048)
    rng = Rng(11, position)
    return {
        "base": rng.normal((64,), "eps"),
        "seed": Rng(12, position).normal((64,), "eps"),
        "turn": rng.at(1).normal((64,), "eps"),
        "later turn": rng.at(64).normal((64,), "eps"),
        "tag": rng.normal((64,), "eps_s"),
        "next position": Rng(11, position + 1).normal((64,), "eps"),
        "next index": rng.normal((66,), "eps")[:, 2:],
        "far position": Rng(11, position + 2**33).normal((64,), "eps"),
    }


def test_streams_are_uncorrelated_with_each_other():
    """Correlation of two streams is N(0, 1/N); of their squares too, which finds dependence without sign."""
    found = {name: x.double().flatten() for name, x in streams().items()}
    n = len(found["base"])
    for (one, x), (two, y) in combinations(found.items(), 2):
        for power in (1, 2):
            r = float(torch.corrcoef(torch.stack([x**power, y**power]))[0, 1])
            assert abs(r) < 4.5 / math.sqrt(n), (one, two, power)


def test_no_position_repeats_anothers_word():
    """2^20 words of 64 bits from neighboring keys are distinct (a collision has probability 3e-8)."""
    words = Rng(0, many(4096)).bits(256, "w")
    assert words.unique().numel() == words.numel()
    shifted = Rng(0, many(4096) + 4096).bits(256, "w")
    assert torch.cat([words.flatten(), shifted.flatten()]).unique().numel() == 2 * words.numel()


@pytest.mark.parametrize("lag", [1, 2, 63, 64])
def test_neighbors_in_one_stream_are_independent(lag):
    """Joint counts of (u_i, u_i+lag) on an 16 x 16 board, along the index and across positions."""
    u = Rng(4, many(1024)).uniform((256,), "u").double()
    for rows in (u, u.T):
        x, y = rows[:, :-lag].flatten(), rows[:, lag:].flatten()
        board = torch.bincount((x * 16).long() * 16 + (y * 16).long(), minlength=256)
        assert stats.chisquare(board.numpy()).pvalue > 1e-4


def test_every_bit_is_fair():
    words = Rng(8, many(2048)).bits(64, "b")
    ones = torch.stack([(words >> bit) & 1 for bit in range(64)]).double().mean((1, 2))
    assert ((ones - 0.5).abs() < 5 * 0.5 / math.sqrt(words.numel())).all()


def test_one_changed_bit_of_the_input_changes_half_of_the_output():
    x = many(4096) * 7919
    flips = [mix64(x) ^ mix64(x ^ (1 << bit)) for bit in range(0, 63, 3)]
    changed = (
        torch.stack([torch.stack([(f >> bit) & 1 for bit in range(64)]) for f in flips]).double().mean(2)
    )
    assert ((changed - 0.5).abs() < 6 * 0.5 / math.sqrt(4096)).all()


def test_fold_depends_on_the_order_of_its_words():
    assert fold(1, 2) != fold(2, 1)
    assert fold(0) != fold(0, 0)
    both = fold(3, torch.arange(-2, 3), 2**62)
    assert both.tolist() == [
        int(fold(3, i, 2**62)) for i in range(-2, 3)
    ]  # in tensors and in Python's integers
    assert both.tolist() == fold(torch.tensor([3] * 5), torch.arange(-2, 3), 2**62).tolist()


@pytest.mark.parametrize("size", [1, 3, 8, 100])
@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 5)])
def test_no_kernel_rounds_by_place(size, shape):
    """Bit for bit over a thousand positions, whatever part of a vector register a number falls into."""
    position = many(1001)
    whole = Rng(9, position).normal(shape, "x")
    assert torch.equal(whole, torch.cat([Rng(9, part).normal(shape, "x") for part in position.split(size)]))


@pytest.mark.parametrize("sizes", [[1] * 12, [5, 7], [12], [3, 4, 5]])
def test_the_split_of_a_batch_does_not_matter(sizes):
    position = torch.tensor([5, 3, 10**12, 0, 7, 7, 1, 2, 9, 11, 13, 2**40])
    whole, parts = Rng(9, position, turn=3), [Rng(9, part, turn=3) for part in position.split(sizes)]
    assert torch.equal(whole.normal((3, 5), "x"), torch.cat([p.normal((3, 5), "x") for p in parts]))
    assert torch.equal(whole.uniform((), "x"), torch.cat([p.uniform((), "x") for p in parts]))
    assert torch.equal(whole.integer(0, 9, (2,), "x"), torch.cat([p.integer(0, 9, (2,), "x") for p in parts]))


def test_each_sample_may_have_a_seed_of_its_own():
    seeds, places = [0, 7, 2**63 - 1, 7], torch.tensor([0, 3, 1, 0])
    for tag, turn in (("x_T", 0), ("step", 5)):
        many = Rng(torch.tensor(seeds), places, turn=turn).normal((3, 2), tag)
        rows = zip(seeds, places.split(1), strict=True)
        single = [Rng(seed, place, turn=turn).normal((3, 2), tag) for seed, place in rows]
        assert torch.equal(many, torch.cat(single))


def test_numbers_do_not_depend_on_what_was_drawn_before_or_on_the_global_state():
    rng = Rng(1, many(4))
    first = rng.normal((3,), "x")
    torch.manual_seed(0)
    rng.uniform((100,), "y")
    assert torch.equal(rng.normal((3,), "x"), first)
    assert torch.equal(rng.at(5).at(0).normal((3,), "x"), first)


def test_numbers_are_the_same_for_ever():
    """Golden values: a change of the hash would silently change every run that is resumed."""
    words = Rng(42, torch.tensor([0, 10**9]), turn=2).bits(2, "golden")
    assert words.tolist() == [
        [4842664680609576177, -6020037340107078680],
        [-9091890817722153772, -5660181777162638920],
    ]


TAGS = (
    *("data.color", "data.flip", "drop", "eps", "eps_fake", "eps_s", "eps_ts", "fd", "judge", "judge_eps"),
    *("judge_fd", "jump", "last_jump", "level", "mismatch", "step", "t", "x_T", "z", "z_other"),
)
"""Names of random numbers in checkpoints of version 2 and before."""


def test_no_name_of_random_numbers_goes():
    """They are part of every result: under another name a resumed run draws others, and says nothing."""
    drawn = ("uniform", "normal", "integer", "standard_normal", "latent")
    found = set()
    for path in (Path(__file__).parents[1] / "src" / "lmsd").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in drawn:
                values = [*node.args, *(each.value for each in node.keywords)]
                found |= {each.value for each in values if isinstance(each, ast.Constant)}
            elif isinstance(node, ast.arguments) and any(each.arg == "tag" for each in node.args):
                found |= {each.value for each in node.defaults if isinstance(each, ast.Constant)}
    assert set(TAGS) - found == set()
