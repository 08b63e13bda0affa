import io

import numpy as np
import pytest
from photographs import pixels
from PIL import Image, ImageEnhance
from sklearn.datasets import load_digits

from lmsd.data.builders.duplicates import components, near_pairs, signature


def signatures(images):
    return np.stack([signature(image) for image in images])


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
    assert near_pairs(signatures(images), 0.99).tolist() == [[i, i + 60] for i in range(60)]


@pytest.mark.parametrize("turn", range(8))
def test_turned_copies_are_kin_and_no_near_duplicates(turn):
    originals = [pixels(seed) for seed in range(30)]
    turned = [np.rot90(x.transpose(1, 0, 2) if turn > 3 else x, turn % 4) for x in originals]
    both = signatures([*originals, *map(np.ascontiguousarray, turned)])
    expected = [[i, i + 30] for i in range(30)]
    assert near_pairs(both, 0.97, turned=True).tolist() == expected
    assert near_pairs(both, 0.97).tolist() == (expected if turn == 0 else [])


@pytest.mark.parametrize("turned", [False, True])
def test_the_search_misses_nothing_that_brute_force_finds(turned, monkeypatch):
    monkeypatch.setattr("lmsd.data.builders.duplicates._BLOCK", 8)
    rng = np.random.default_rng(0)
    basis = rng.normal(
        size=(3, 8 * 8 * 3)
    )  # so few that pictures differ along the direction that is searched
    u = (rng.normal(size=(500, 3)) @ basis).reshape(500, 8, 8, 3).astype(np.float32)
    u[::3] = np.rot90(u[::3], 1, (1, 2))
    u /= np.sqrt((u**2).sum((1, 2, 3), keepdims=True))
    views = [np.rot90(v, k, (1, 2)) for v in (u, u.swapaxes(1, 2)) for k in range(4)] if turned else [u]
    flat = u.reshape(len(u), -1)
    best = np.max([flat @ view.reshape(len(u), -1).T for view in views], axis=0)
    found = {tuple(pair) for pair in near_pairs(u, 0.985, turned=turned).tolist()}
    surely, perhaps = (
        {tuple(p) for p in np.argwhere(np.triu(best > 0.985 + slack, 1)).tolist()} for slack in (1e-4, -1e-4)
    )
    assert len(surely) > 100
    assert surely <= found <= perhaps


def test_no_handwritten_digit_is_taken_for_a_copy_of_another():
    digits = np.round(load_digits().images * (255 / 16)).astype(np.uint8)[..., None]
    assert len(near_pairs(signatures(digits), 0.995)) == 0


def test_color_tells_pictures_apart_and_flat_ones_have_no_copies():
    red = np.zeros((16, 16, 3), np.uint8)
    red[4:9, 4:9, 0] = 200
    flat = [np.full((16, 16, 3), level, np.uint8) for level in (10, 200)]
    assert near_pairs(signatures([red, red[..., ::-1].copy(), *flat]), 0.9).tolist() == []


def test_components_join_chains():
    pairs = np.array([[3, 4], [0, 5], [4, 5], [1, 2]])
    assert components(7, pairs) == [0, 1, 1, 0, 0, 0, 6]
