"""Latents encoded once: what is read is what was made, and nothing stale is ever read."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lmsd.data import latents
from lmsd.data.builders import BuildOptions, Drawing, Preparation, build
from lmsd.data.latents import Latents, encode_shards
from lmsd.data.shardset import ShardSet, Streaming
from lmsd.errors import UserError


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes") / "data"
    options = BuildOptions(
        shard_size=10,
        pictures=Preparation(image_size=16),
        drawing=Drawing(train_count=40, val_count=4, test_count=4),
    )
    return build("shapes", folder, options=options).parent


def data_of(shards: Path, *, size: int = 16, flip: bool = True) -> ShardSet:
    return ShardSet(str(shards), image_size=size, train=Streaming(flip=flip))


def encoded(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A linear encoder that is not equivariant, with a spread."""
    weight = torch.linspace(-1, 1, 3 * 4 * 4).view(1, 3, 4, 4)
    z = torch.nn.functional.conv2d(x, torch.cat([weight, weight.square()]), stride=4)
    return z, z.abs() + 0.1


def made(shards: Path, folder: Path, **changes: object) -> tuple[ShardSet, latents.Maker]:
    data = data_of(shards)
    maker = dataclasses.replace(data.maker("codec", drawn=True), **changes)
    encode_shards(data.split_set("train"), data.index("train"), folder, maker, encoded)
    return data, maker


def test_every_row_is_what_the_codec_makes_of_the_image_and_of_its_mirror(shards, tmp_path):
    data, maker = made(shards, tmp_path)
    train, index = data.split_set("train"), data.index("train")
    rows = np.array([3, 39, 17, 3, 20])
    mirrored = np.array([False, True, True, True, False])
    mean, spread = Latents(tmp_path, index, maker)(*index.places(rows), mirrored)
    x = train.images(rows)
    x = torch.where(torch.from_numpy(mirrored)[:, None, None, None], x.flip(-1), x)
    expected = [value.half().float() for value in encoded(x)]
    assert torch.equal(mean, expected[0])
    assert torch.equal(spread, expected[1])
    assert not torch.equal(mean[3], mean[0].flip(-1))  # the mirror's latent is another thing


def test_the_stream_reads_what_it_would_have_encoded(shards, tmp_path):
    data, maker = made(shards, tmp_path)
    plain = data.stream(seed=3)[np.arange(60, 92)]
    data.latents = Latents(tmp_path, data.index("train"), maker)
    cached = data.stream(seed=3)[np.arange(60, 92)]
    assert torch.equal(cached.x, encoded(plain.x)[0].half().float())
    assert (cached.text, cached.encoded) == (plain.text, True)
    assert torch.equal(cached.label, plain.label)
    assert torch.equal(cached.position, plain.position)
    assert cached.rows(slice(2, 5)).encoded
    assert torch.equal(cached.rows(slice(2, 5)).spread, cached.spread[2:5])


def test_two_ranks_write_what_one_does(shards, tmp_path):
    made(shards, tmp_path / "one")
    data = data_of(shards)
    maker = data.maker("codec", drawn=True)
    for rank in range(2):
        split, index = data.split_set("train"), data.index("train")
        assert encode_shards(split, index, tmp_path / "two", maker, encoded, rank=rank, world=2) == 2
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


CHANGES = {
    **{f"codec-{number}": {"codec": f"other-{number}"} for number in range(6)},
    **{f"transform-{number}": {"transform": f"other-{number}"} for number in range(4)},
    "undrawn": {"drawn": False},
}


def test_twenty_changes_read_no_stale_row(shards, tmp_path):
    """Another codec, transform, size, order of shards or shard: refused, with the difference."""
    data, maker = made(shards, tmp_path)
    index, refused = data.index("train"), 0
    for name, change in CHANGES.items():
        with pytest.raises(UserError, match=rf"lacks the latents of 4 of 4 .*{next(iter(change))} was"):
            Latents(tmp_path, index, dataclasses.replace(maker, **change))
        refused += 1
        assert name
    for size in (8, 12, 20, 24, 32):
        with pytest.raises(UserError, match="transform was"):
            Latents(tmp_path, index, data_of(shards, size=size).maker("codec", drawn=True))
        refused += 1
    for seed in range(4):  # other pictures under the same names
        options = BuildOptions(
            shard_size=10,
            pictures=Preparation(image_size=16),
            drawing=Drawing(train_count=40, val_count=4, test_count=4, seed=seed + 1),
        )
        other = data_of(build("shapes", tmp_path / f"shapes{seed}", options=options).parent)
        with pytest.raises(UserError, match="shard was"):
            Latents(tmp_path, other.index("train"), other.maker("codec", drawn=True))
        refused += 1
    assert refused == 20


def test_what_is_there_but_damaged_or_missing_is_named(shards, tmp_path):
    data, maker = made(shards, tmp_path)
    files = sorted(tmp_path.glob("*.latents"))
    files[0].write_bytes(files[0].read_bytes()[:50])
    broken = Latents(tmp_path, data.index("train"), maker)
    with pytest.raises(UserError, match="are damaged: delete the file"):
        broken(np.array([0]), np.array([0]), np.array([False]))
    files[1].unlink()
    with pytest.raises(UserError, match="lacks the latents of 1 of 4 shards"):
        Latents(tmp_path, data.index("train"), maker)
    with pytest.raises(UserError, match="do not fit into"):
        encode_shards(
            data.split_set("train"),
            data.index("train"),
            tmp_path / "large",
            maker,
            lambda x: (x * 1e6, x * 0),
        )


def test_colors_that_change_and_latents_that_do_not_are_refused(shards, tmp_path):
    data, maker = made(shards, tmp_path)
    data.latents = Latents(tmp_path, data.index("train"), maker)
    data.train = dataclasses.replace(data.train, color=0.1)
    with pytest.raises(UserError, match=r"data\.train\.color changes images"):
        data.stream(seed=0)


SCRIPT = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_latent_cache as t
from lmsd.data.latents import encode_shards
calls = 0
def encode(x):
    global calls
    calls += 1
    if calls == {stop}:
        Path({folder!r}, "train-000001.tar.half.tmp.0000").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return t.encoded(x)
data = t.data_of(Path({shards!r}))
split, index, maker = data.split_set("train"), data.index("train"), data.maker("codec", drawn=True)
encode_shards(split, index, Path({folder!r}), maker, encode)
"""


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_to_the_same_bytes(shards, tmp_path):
    made(shards, tmp_path / "whole")
    folder = tmp_path / "killed"
    for stop in (3, 4, 0):
        script = SCRIPT.format(
            tests=str(Path(__file__).parent), shards=str(shards), folder=str(folder), stop=stop
        )
        done = subprocess.run([sys.executable, "-c", script], env=os.environ, check=False)
        assert done.returncode == (-signal.SIGKILL if stop else 0)
    for left in folder.glob("*.tmp.*"):
        left.unlink()
    assert contents(folder) == contents(tmp_path / "whole")
