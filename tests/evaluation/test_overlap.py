"""Pictures that two splits share: the same pixels, and one picture under another brightness."""

import json
import tracemalloc
from itertools import pairwise

import pytest
import torch
from tiny_set import TinySet

from lmsd.evaluation.overlap import SIMILARITY, Overlap, overlap, similarity_of


def test_exact_and_near_twins_are_counted(tmp_path):
    train, held_out = TinySet(200, 1), TinySet(80, 2)
    assert overlap(train, held_out) == Overlap(exact=0, near=0, of=80)
    held_out.x[3], held_out.x[70] = train.x[11], train.x[150]
    held_out.x[5] = (0.8 * train.x[20] + 0.1).add(1).mul(127.5).round().div(127.5).sub(1)
    found = overlap(train, held_out)
    assert found == Overlap(exact=2, near=3, of=80)
    assert "3 of 80 held-out images (3.8 %)" in found.note()
    assert Overlap(0, 0, 80).note() is None


def test_the_count_is_kept_by_both_hashes(tmp_path):
    train, held_out = TinySet(50, 1), TinySet(20, 2)
    held_out.x[0] = train.x[0]
    first = overlap(train, held_out, cache=tmp_path)
    read = train.read
    assert overlap(train, held_out, cache=tmp_path) == first == Overlap(1, 1, 20)
    assert train.read == read
    (kept,) = tmp_path.iterdir()
    kept.write_text('{"exact": 1, ')
    assert overlap(train, held_out, cache=tmp_path) == first, "a damaged file is made again"
    assert "near" in kept.read_text()
    read = train.read
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="the overlap is not kept"):
        assert overlap(train, held_out, cache=tmp_path / "file") == first
    train.hash = "other"
    assert overlap(train, held_out, cache=tmp_path) == first
    assert train.read > read


def test_a_picture_of_one_color_is_no_twin_of_another():
    train, held_out = TinySet(10, 1), TinySet(10, 2)
    train.x[0], held_out.x[0] = torch.full((1, 8, 8), -1.0), torch.full((1, 8, 8), 1.0)
    assert overlap(train, held_out).near == 0


def test_the_bound_is_the_one_that_the_data_were_split_by(tmp_path):
    train, held_out = TinySet(20, 1), TinySet(10, 2)
    noise = torch.randn(train.x[0].shape, generator=torch.Generator().manual_seed(0))
    held_out.x[0] = (train.x[0] + 0.06 * noise).clamp(-1, 1)  # correlated by 0.994
    assert similarity_of(str(tmp_path)) == similarity_of("http://host/shards") == SIMILARITY
    assert overlap(train, held_out, similarity=similarity_of(str(tmp_path))).near == 1
    (tmp_path / "manifest.json").write_text(json.dumps({"options": {"similarity": 0.9999}}))
    assert overlap(train, held_out, similarity=similarity_of(str(tmp_path))).near == 0


def test_a_mirrored_training_image_is_one_where_training_mirrors(tmp_path):
    train, held_out = TinySet(120, 1), TinySet(40, 2)
    held_out.x[3] = train.x[11].flip(-1)
    held_out.x[5] = (0.8 * train.x[20].flip(-1) + 0.1).add(1).mul(127.5).round().div(127.5).sub(1)
    assert overlap(train, held_out, cache=tmp_path) == Overlap(exact=0, near=0, of=40)
    assert overlap(train, held_out, mirrored=True, cache=tmp_path) == Overlap(exact=1, near=2, of=40)
    assert overlap(train, held_out, cache=tmp_path).near == 0, "each is kept by itself"


class Drawn:
    """Images of 32x32 that are drawn when they are asked for."""

    hash = None

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed = n, seed

    def __len__(self) -> int:
        return self.n

    def images(self, indices):
        generator = torch.Generator().manual_seed(self.seed + min(indices))
        return torch.rand(len(indices), 3, 32, 32, generator=generator) * 2 - 1


def test_memory_grows_with_signatures_and_not_with_images():
    """A held-out image leaves 768 numbers and a hash, a training image nothing; one has 3,072 numbers."""

    def peak(train: int, held_out: int) -> int:
        tracemalloc.start()
        found = overlap(Drawn(train, 0), Drawn(held_out, 10**6), mirrored=True)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found == Overlap(0, 0, held_out)
        return top

    longer = [peak(train, 500) for train in (1000, 2000, 3000)]
    assert all(other - one < 100 * 1000 for one, other in pairwise(longer)), longer
    assert peak(1000, 1500) - longer[0] < 1000 * (768 * 4 + 300)
