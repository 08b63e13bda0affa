"""Several sources by weights: exact, resumable, a function of the position."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from tars import data_module, sample, write_shards, write_tar

from lmsd.data.mixture import Mixture, shares_of
from lmsd.data.order import Order
from lmsd.data.shardset import ShardSet
from lmsd.errors import UserError


def mixture(weights, counts=((5, 4), (3,), (2, 2, 1)), seed=3):
    counts = counts[: len(weights)]
    known = {f"{number}-{k}": size for number, each in enumerate(counts) for k, size in enumerate(each)}
    names = [[name for name in known if name[0] == str(number)] for number in range(len(counts))]
    # shards of an index come sorted by name, not by source
    shards, sizes = zip(*sorted(known.items(), reverse=True), strict=True)
    made = Mixture(shards, np.asarray(sizes), sources=names, weights=weights, window=2, seed=seed)
    return made, shards


@pytest.mark.parametrize("weights", [(7, 3), (0.5, 0.25, 0.25), (0.9, 0.07, 0.03), (1,)], ids=str)
def test_every_source_has_its_share_at_every_position(weights):
    made, _ = mixture(weights)
    count = 2_000
    source, own = made.located(np.arange(count))
    for number, weight in enumerate(np.asarray(weights) / sum(weights)):
        mine = source == number
        assert own[mine].tolist() == list(range(mine.sum()))  # its own positions, each once, in order
        far = np.abs(np.cumsum(mine) - weight * np.arange(1, count + 1))
        assert far.max() < len(weights) + 0.01


@pytest.mark.parametrize("weights", [(7, 3), (0.2, 0.2, 0.6)], ids=str)
def test_samples_of_every_source_come_once_in_its_own_epoch(weights):
    made, shards = mixture(weights)
    source, own = made.located(np.arange(600))
    shard, sample = made(np.arange(600))
    for number, order in enumerate(made.orders):
        mine = source == number
        seen = list(zip(shard[mine].tolist(), sample[mine].tolist(), strict=True))
        assert {shards[s][0] for s, _ in seen} == {str(number)}
        for epoch in range(len(seen) // order.total):
            part = seen[epoch * order.total : (epoch + 1) * order.total]
            assert len(set(part)) == order.total
        plain_shard, plain_sample = Order(order.samples, window=2, seed=3)(own[mine])
        assert sample[mine].tolist() == plain_sample.tolist()
        assert shard[mine].tolist() == made.numbers[number][plain_shard].tolist()


def test_it_is_a_function_of_the_position():
    made, _ = mixture((0.6, 0.4))
    places = np.random.default_rng(0).permutation(500)
    shard, sample = made(np.arange(500))
    again = made(places)
    assert again[0].tolist() == shard[places].tolist()
    assert again[1].tolist() == sample[places].tolist()


def test_what_comes_next_is_fetched_of_every_source():
    made, _ = mixture((0.6, 0.4))
    for start in range(0, 120, 7):
        key = made.windows([start])[0]
        near = {*made.shards(*key), *made.shards(*made.following(*key))}
        shard, _ = made(np.arange(start, start + 3))
        assert set(shard.tolist()) <= near


@pytest.mark.parametrize(
    ("weights", "said"),
    [((0.5, 0.0), "above 0"), ((1.0, float("nan")), "above 0"), ((1.0, 1e-5), "less than one sample")],
    ids=["zero", "nan", "tiny"],
)
def test_weights_that_mean_nothing_are_refused(weights, said):
    with pytest.raises(UserError, match=said):
        shares_of(weights)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Sources A (pictures 0 to 12) and B (100 to 106)."""
    folders = [tmp_path_factory.mktemp(name) for name in "AB"]
    for folder, sizes, start in zip(folders, ([5, 8], [7]), (0, 100), strict=True):
        for number, size in enumerate(sizes):
            rows = range(start + sum(sizes[:number]), start + sum(sizes[:number]) + size)
            members = [(f"{row:03}.{name}", content) for row in rows for name, content in sample(row).items()]
            write_tar(folder / f"train-{number:06}.tar", members)
    return [str(folder) for folder in folders]


def texts(module, batches):
    loader = iter(module.train_dataloader())
    return [text for _ in range(batches) for text in next(loader).text]


def mixed(two, weights=(7, 3), **options):
    return data_module(two, image_size=8, batch_size=10, seed=3, weights=list(weights), **options)


def test_sources_of_shards_are_mixed(two):
    found = [int(text.split()[1]) for text in texts(mixed(two), 26)]
    ours = [number for number in found if number < 100]
    theirs = [number for number in found if number >= 100]
    assert (len(ours), len(theirs)) == (182, 78)
    for numbers, size in ((ours, 13), (theirs, 7)):
        for epoch in range(len(numbers) // size):
            assert len(set(numbers[epoch * size : (epoch + 1) * size])) == size


@pytest.mark.parametrize("world", [1, 2, 5])
def test_a_mixture_goes_on_where_it_stopped_on_any_number_of_ranks(two, world):
    whole = texts(mixed(two), 6)
    module = mixed(two)
    module.advance(30)
    state = module.state_dict()
    found = []
    for rank in range(world):
        again = mixed(two, world=world, rank=rank)
        again.load_state_dict(state)
        found.append(texts(again, 3))
    each = 10 // world
    assert whole[30:] == [
        text for step in range(3) for part in found for text in part[step * each : (step + 1) * each]
    ]


@pytest.mark.parametrize("weights", [(3, 7), None], ids=["swapped", "none"])
def test_other_weights_are_another_stream(two, weights):
    state = mixed(two).state_dict()
    other = data_module(two, image_size=8, batch_size=10, seed=3, weights=weights)
    with pytest.raises(UserError, match="sources was"):
        other.load_state_dict(state)


def test_shards_without_weights_have_the_order_and_state_that_they_had(two):
    plain = data_module(two, image_size=8, batch_size=10, seed=3)
    assert "sources" not in plain.state_dict()
    assert type(plain.shards.stream(seed=3).order) is Order


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights": [1.0]}, "1 numbers and data.shards 2 sources"),
        ({"weights": [1.0, -1.0]}, "above 0"),
        ({"weights": [1, 1], "first": 5}, "data.train.first counts in one order"),
    ],
    ids=["too few", "negative", "first"],
)
def test_what_cannot_be_mixed_is_refused(two, change, said):
    with pytest.raises(UserError, match=said):
        data_module(two, image_size=8, batch_size=10, **change).shards.stream(seed=0)


def test_generated_images_are_for_training_alone(two, tmp_path):
    ours, theirs = two
    made = tmp_path / "made"
    made.mkdir()
    shutil.copy(Path(theirs) / "train-000000.tar", made / "train-000000.tar")
    (made / "manifest.json").write_text('{"source": {"name": "synthetic", "run": "abc"}}')
    for split in ("val", "test"):
        with pytest.raises(UserError, match=f"generated images, which are no {split} set"):
            ShardSet(ours, image_size=8, **{split: str(made)})
    both = ShardSet([ours, str(made)], image_size=8)
    assert len(both.split_set("train")) == 20
    real = both.split_set("train", real=True)
    assert len(real) == 13
    assert real.hash == ShardSet(ours, image_size=8).split_set("train").hash
    with pytest.raises(UserError, match="scores need real ones"):
        ShardSet(str(made), image_size=8).split_set("train", real=True)
    (made / "manifest.json").unlink()  # the name says it too
    (made / "train-000000.tar").rename(made / "train-synthetic-000000.tar")
    assert len(ShardSet([ours, str(made)], image_size=8).split_set("train", real=True)) == 13


def test_a_source_that_is_held_out_by_its_folder_s_name_is_no_source(tmp_path):
    for name in ("photos", "testing", "more"):
        write_shards(tmp_path / name, [4])
        (tmp_path / name / "train-000000.tar").rename(tmp_path / name / "000.tar")
    named = [str(tmp_path / name) for name in ("photos", "testing", "more")]
    with pytest.raises(UserError, match="testing has no train shards to mix: leave it out"):
        ShardSet(named, image_size=8, weights=[1, 1, 1])
    whole = ShardSet([named[0], named[2]], image_size=8, weights=[1, 1])
    shard, _ = whole.stream(seed=0).order(np.arange(8))
    assert sorted(shard.tolist()) == [0] * 4 + [1] * 4
