"""The order: a permutation every epoch, whatever the sizes, the window and the way it is asked."""

import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmsd import rng
from lmsd.data.order import Order, fold, mix64
from lmsd.errors import UserError

PRIMES = [101, 2, 97, 1, 53, 89, 31, 0, 7, 13, 71]


def test_the_hash_is_that_of_the_random_numbers():
    words = np.random.default_rng(0).integers(-(2**63), 2**63, 1000)
    ours = fold(7, words, 3).view(np.int64)
    theirs = rng.fold(7, torch.from_numpy(words), 3).numpy()
    assert np.array_equal(ours, theirs)


def test_mix64_is_the_published_splitmix64():
    # the first outputs of SplitMix64 with seed 1234567 (Vigna's reference program)
    state = np.uint64(1234567) + np.arange(1, 4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert mix64(state).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("window", [1, 3, 8, 50])
def test_each_of_three_epochs_is_a_permutation_and_they_differ(window):
    order = Order(PRIMES, window=window, seed=5)
    shard, sample = order(np.arange(3 * order.total))
    everything = {(s, i) for s, count in enumerate(PRIMES) for i in range(count)}
    epochs = []
    for e in range(3):
        part = slice(e * order.total, (e + 1) * order.total)
        epochs.append(list(zip(shard[part].tolist(), sample[part].tolist(), strict=True)))
        assert len(epochs[-1]) == len(everything)
        assert set(epochs[-1]) == everything
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_first_positions_come_again_and_again():
    whole, short = Order(PRIMES, seed=5), Order(PRIMES, seed=5, first=10)
    at = np.arange(25)
    for again, once in zip(short(at), whole(at % 10), strict=True):
        assert np.array_equal(again, once)
    assert short.windows(at) == whole.windows(np.arange(10))


@given(
    sizes=st.lists(st.integers(0, 20), min_size=1, max_size=12).filter(any),
    window=st.integers(1, 13),
    seed=st.integers(0, 2**40),
    start=st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None)
def test_asking_all_at_once_or_one_by_one_in_any_order_is_the_same(sizes, window, seed, start):
    positions = np.arange(start, start + 40)
    shard, sample = Order(sizes, window=window, seed=seed)(positions)
    other = Order(sizes, window=window, seed=seed)
    for k in np.random.default_rng(seed).permutation(40):
        one = other(positions[k : k + 1])
        assert (int(one[0][0]), int(one[1][0])) == (shard[k], sample[k])


def test_samples_stay_within_their_window_of_shards():
    order = Order([5] * 12, window=4, seed=1)
    shard, _ = order(np.arange(order.total))
    for w in range(3):
        inside = shard[w * 20 : (w + 1) * 20]
        assert set(inside.tolist()) == set(order.shards(0, w))
        assert len(set(inside[:8].tolist())) > 2  # shuffled across the window, not shard after shard


def test_windows_follow_one_another_through_the_epochs():
    order = Order([4] * 5, window=2, seed=3)
    pairs = order.windows(np.arange(2 * order.total))
    assert pairs == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    for now, after in pairwise(pairs):
        assert order.following(*now) == after


def test_another_seed_is_another_order():
    positions = np.arange(100)
    a, b = (np.stack(Order([50, 50], window=2, seed=s)(positions)) for s in (0, 1))
    assert (a != b).any(0).mean() > 0.9


def test_the_order_is_fixed_for_good():
    shard, sample = Order([3, 4, 5], window=2, seed=42)(np.arange(10, 22))
    assert shard.tolist() == [1, 1, 1, 1, 1, 0, 0, 1, 0, 2, 2, 2]
    assert sample.tolist() == [3, 0, 0, 2, 1, 1, 0, 3, 2, 3, 4, 1]


def test_a_hundred_million_samples_take_milliseconds():
    order = Order(np.full(10_000, 10_000), window=8, seed=0)
    start = time.process_time()
    order(np.arange(90_000_000, 90_000_256))
    assert time.process_time() - start < 0.5  # some 20 ms on a quiet machine
    start = time.process_time()
    order(np.arange(90_000_256, 90_000_512))
    assert time.process_time() - start < 0.05


def test_what_cannot_be_ordered_is_refused():
    with pytest.raises(UserError, match="contain no samples"):
        Order([0, 0])
    with pytest.raises(UserError, match=r"data\.train\.window=0"):
        Order([1], window=0)
