"""Buckets: every sample once an epoch, one size a batch, the same for any ranks, and resumed anywhere."""

import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from lmsd.data.buckets import Buckets, bucket_of, bucket_sizes
from lmsd.data.builders.write import write_split
from lmsd.data.shardset import ShardSet, Streaming
from lmsd.data.stream import Positions
from lmsd.engine.datamodule import ShardDataModule
from lmsd.errors import UserError

SIZES = bucket_sizes(32, 8)


def test_sizes_have_about_one_area_and_their_mirror_images():
    assert SIZES == [(24, 40), (32, 32), (40, 24)]
    for side, multiple in ((64, 8), (512, 64), (1024, 64)):
        found = bucket_sizes(side, multiple)
        assert (side, side) in found
        assert all((w, h) in found and h % multiple == w % multiple == 0 for h, w in found)
        assert all(abs(h * w / side**2 - 1) < 0.25 and 0.5 <= h / w <= 2 for h, w in found)
    with pytest.raises(UserError, match=r"buckets=24: data\.image_size=32 is no multiple"):
        bucket_sizes(32, 24)


def test_a_sample_goes_to_the_nearest_ratio():
    heights, widths = np.array([10, 300, 17, 900, 1]), np.array([10, 480, 10, 880, 9])
    assert [SIZES[b] for b in bucket_of(heights, widths, SIZES)] == [
        *((32, 32), (24, 40), (40, 24), (32, 32), (24, 40))
    ]


def planted(counts=(103, 57, 11), *, batch_size=8, repeats=(1, 1, 1, 1), seed=3):
    """Four shards with samples of three sizes in any order."""
    rng = np.random.default_rng(0)
    kinds = rng.permutation(np.repeat(np.arange(3), counts))
    pictures = [np.asarray(SIZES)[part] for part in np.array_split(kinds, 4)]
    return Buckets(pictures, SIZES, batch_size=batch_size, repeats=repeats, window=2, seed=seed), pictures


@pytest.mark.parametrize("batch_size", [1, 8, 60])  # 60: one bucket fills no batch in an epoch
def test_every_sample_comes_once_an_epoch_and_batches_have_one_size(batch_size):
    order, pictures = planted(batch_size=batch_size)
    epochs = 6
    batches = sum(int(n) * epochs // batch_size for n in order.totals)
    seen = Counter()
    for k in range(batches):
        shard, sample = order(np.arange(k * batch_size, (k + 1) * batch_size))
        sizes = {tuple(pictures[s][p]) for s, p in zip(shard, sample, strict=True)}
        assert sizes == {order.size(k * batch_size)}
        seen.update(zip(shard.tolist(), sample.tolist(), strict=True))
    every = Counter({(s, p): epochs for s, each in enumerate(pictures) for p in range(len(each))})
    carried = every - seen
    assert not seen - every
    assert sum(carried.values()) == sum(int(n) * epochs % batch_size for n in order.totals)
    assert max(carried.values(), default=0) <= max(1, batch_size // 11 + 1)


def test_a_bucket_is_read_in_its_own_epochs_and_each_epoch_anew():
    order, _ = planted()
    streams = {}
    for k in range(300):
        bucket, own = order.batch(k)
        assert own == len(streams.setdefault(bucket, []))  # its own batches one after the other
        streams[bucket].append(list(zip(*order(np.arange(8 * k, 8 * k + 8)), strict=True)))
    for bucket, batches in streams.items():
        total, flat = int(order.totals[bucket]), [pair for batch in batches for pair in batch]
        epochs = [flat[at : at + total] for at in range(0, len(flat) - total + 1, total)]
        assert all(len(set(epoch)) == total for epoch in epochs)
        assert all(one != two for one, two in pairwise(epochs))


def test_repeats_count_and_the_seed_matters():
    order, pictures = planted(repeats=(3, 1, 1, 1), batch_size=1)
    seen = Counter()
    for k in range(int(order.totals.sum())):
        shard, sample = order([k])
        seen[int(shard[0]), int(sample[0])] += 1
    assert {count for (shard, _), count in seen.items() if shard == 0} == {3}
    assert sum(seen.values()) == 171 + 2 * len(pictures[0])
    assert not np.array_equal(planted(seed=1)[0](range(80))[1], planted(seed=2)[0](range(80))[1])


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("buckets")
    rng = np.random.default_rng(1)

    def samples():
        for number in range(61):
            height, width = [(30, 50), (40, 40), (50, 30)][int(rng.integers(3))]
            pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
            path = folder / "one.png"
            Image.fromarray(pixels).save(path)
            words = json.dumps([height, width]).encode()
            yield {"__key__": f"{number:03d}", "png": path.read_bytes(), "txt": words}

    write_split(folder, "train", samples(), size=20)
    return folder


def module(shards, *, rank=0, world=1, micro_batches=1, **changes):
    train = Streaming(**{"buckets": 8, "flip": True, **changes})
    data = ShardSet(str(shards), image_size=32, train=train)
    counts = {"batch_size": 8, "micro_batches": micro_batches, "world": world, "rank": rank}
    return ShardDataModule(data, **counts, seed=5)


def batches(data, count):
    found = []
    for batch in data.train_dataloader():
        found.append(batch)
        if len(found) == count:
            return found
    raise AssertionError


def test_images_have_the_size_of_their_batch_and_keep_their_ratio(shards):
    sizes = Counter()
    for batch in batches(module(shards), 15):
        height, width = batch.x.shape[2:]
        sizes[height, width] += 1
        assert (height, width) in SIZES
        for text in batch.text:
            own = json.loads(text)
            assert (own[0] > own[1]) - (own[0] < own[1]) == (height > width) - (height < width)
    assert len(sizes) == 3


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_a_batch_of_one_size(shards, world):
    whole = batches(module(shards), 15)
    ranks = [batches(module(shards, rank=rank, world=world), 15) for rank in range(world)]
    for k, batch in enumerate(whole):
        parts = [each[k] for each in ranks]
        assert torch.equal(torch.cat([part.x for part in parts]), batch.x)
        assert [text for part in parts for text in part.text] == batch.text


def test_micro_batches_and_workers_change_nothing(shards):
    whole = batches(module(shards), 8)
    small = batches(module(shards, micro_batches=2), 16)
    for k, batch in enumerate(whole):
        assert torch.equal(torch.cat([small[2 * k].x, small[2 * k + 1].x]), batch.x)


def test_a_resumed_stream_goes_on_at_every_batch_of_two_epochs(shards):
    count = 2 * 61 // 8 + 2
    whole = batches(module(shards), count + 1)
    for k in range(count):
        first = module(shards)
        first.advance(8 * k)
        again = module(shards)
        again.load_state_dict(first.state_dict())
        assert torch.equal(batches(again, 1)[0].x, whole[k].x)


def test_what_would_change_the_order_is_refused(shards):
    state = module(shards).state_dict()
    other = ShardDataModule(module(shards).shards, batch_size=4, seed=5)
    with pytest.raises(UserError, match="batch_size was 8 and is 4"):
        other.load_state_dict(state)
    with pytest.raises(UserError, match="buckets was 8 and is None"):
        module(shards, buckets=None).load_state_dict(state)
    assert "buckets" not in module(shards, buckets=None).state_dict()
    with pytest.raises(UserError, match=r"data\.train\.buckets"):
        module(shards, first=20).train_dataloader()


def test_a_batch_size_of_ranks_divides_as_before():
    with pytest.raises(UserError):
        Positions(0, batch_size=8, world=3)
