import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy.sparse.csgraph import connected_components
from sklearn.datasets import load_digits
from tiny_photographs import pixels

from lmsd.data.builders.duplicates import signature
from lmsd.data.builders.near import Near


def signatures(images):
    return np.stack([signature(image) for image in images])


def grouped(u, similarity, *, turned=False):
    """Who belongs together with somebody, by the first of each group."""
    groups = {}
    for item, name in enumerate(Near(u, similarity, turned=turned).groups()):
        groups.setdefault(name, []).append(item)
    return [group for group in groups.values() if len(group) > 1]


def jpeg(image, quality):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


COPIES = {
    "jpeg": lambda x: jpeg(x, 75),
    "darker": lambda x: np.asarray(ImageEnhance.Brightness(Image.fromarray(x)).enhance(0.8)),
    "brighter": lambda x: np.asarray(ImageEnhance.Brightness(Image.fromarray(x)).enhance(1.2)),
    "contrast": lambda x: np.asarray(ImageEnhance.Contrast(Image.fromarray(x)).enhance(0.7)),
    "resized": lambda x: np.asarray(Image.fromarray(x).resize((64, 64)).resize((32, 32))),
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_every_copy_is_found_and_nothing_else(copy):
    originals = [pixels(seed) for seed in range(60)]
    images = [*originals, *(copy(image) for image in originals)]
    assert grouped(signatures(images), 0.99) == [[i, i + 60] for i in range(60)]


@pytest.mark.parametrize("turn", range(8))
def test_turned_copies_are_kin_and_no_near_duplicates(turn):
    originals = [pixels(seed) for seed in range(30)]
    turned = [np.rot90(x.transpose(1, 0, 2) if turn > 3 else x, turn % 4) for x in originals]
    both = signatures([*originals, *map(np.ascontiguousarray, turned)])
    expected = [[i, i + 30] for i in range(30)]
    assert grouped(both, 0.97, turned=True) == expected
    assert grouped(both, 0.97) == (expected if turn == 0 else [])


def brute(u, turned):
    """The largest correlation of every pair, over the turns."""
    views = [np.rot90(v, k, (1, 2)) for v in (u, u.swapaxes(1, 2)) for k in range(4)] if turned else [u]
    flat = u.reshape(len(u), -1)
    return np.max([flat @ view.reshape(len(u), -1).T for view in views], axis=0)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dimensions", [2, 3, 5])  # so few that pictures differ along the direction searched
def test_the_search_misses_nothing_that_brute_force_finds(turned, dimensions, monkeypatch):
    monkeypatch.setattr("lmsd.data.builders.near._BLOCK", 16)
    rng = np.random.default_rng(dimensions)
    basis = rng.normal(size=(dimensions, 8 * 8 * 3))
    u = (rng.normal(size=(300, dimensions)) @ basis).reshape(300, 8, 8, 3).astype(np.float32)
    u[::3] = np.rot90(u[::3], 1, (1, 2))
    u /= np.sqrt((u**2).sum((1, 2, 3), keepdims=True))
    u[[7, 70]] = 0  # flat
    order = sorted(range(300), key=lambda i: (i * 7 % 3, i))
    kinds = [str(k) for k in rng.integers(0, 3, 300)]
    for similarity in (0.9, 0.985):
        near = brute(u, turned) >= similarity - 5e-6
        count, labels = connected_components(near, directed=False)
        found = Near(u, similarity, turned=turned)
        groups = found.groups()
        assert 1 < count < 300
        assert groups.tolist() == [int(np.flatnonzero(labels == label)[0]) for label in labels]
        gone = {}
        for one in order:
            if one not in gone:
                gone.update(
                    (two, one)
                    for two in order
                    if two not in gone and two != one and near[one, two] and kinds[one] == kinds[two]
                )
        assert found.first_of(order, dict(enumerate(kinds)), groups) == gone


def frames(count, noise=6.0):
    """A static camera: one scene, new noise in every picture."""
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 256, (32, 32, 3)).astype(float)
    return [np.clip(scene + rng.normal(0, noise, scene.shape), 0, 255).astype(np.uint8) for _ in range(count)]


def test_a_static_camera_takes_time_in_proportion():
    u = signatures(frames(1200))
    compared = []

    def count(self, one, other, original=Near._correlation):
        compared[-1] += max(len(one), len(other))
        return original(self, one, other)

    for size in (300, 600, 1200):
        compared.append(0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Near, "_correlation", count)
            near, kin = Near(u[:size], 0.98), Near(u[:size], 0.97, turned=True)
            groups = near.groups()
            assert set(groups) == {0}
            assert set(kin.groups()) == {0}
            gone = near.first_of(range(size), [""] * size, groups)
            assert gone == dict.fromkeys(range(1, size), 0)
    assert (
        compared[2] < 2.2 * compared[1] < 4.84 * compared[0] < 4.84 * 10 * 300
    )  # not four and sixteen times


def test_no_handwritten_digit_is_taken_for_a_copy_of_another():
    digits = np.round(load_digits().images * (255 / 16)).astype(np.uint8)[..., None]
    assert grouped(signatures(digits), 0.995) == []


def test_color_tells_pictures_apart_and_flat_ones_have_no_copies():
    red = np.zeros((16, 16, 3), np.uint8)
    red[4:9, 4:9, 0] = 200
    flat = [np.full((16, 16, 3), level, np.uint8) for level in (10, 200)]
    assert grouped(signatures([red, red[..., ::-1].copy(), *flat]), 0.9) == []


def test_chains_belong_together():
    angles = np.cumsum([0, 0.1, 0.1, 0.1, 0.5, 0.1, 0.5])
    u = np.zeros((7, 2, 2, 3), np.float32)
    u[:, 0, 0, 0], u[:, 0, 0, 1] = np.cos(angles), np.sin(angles)
    assert Near(u, 0.99).groups().tolist() == [0, 0, 0, 0, 4, 4, 6]
