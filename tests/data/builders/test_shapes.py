import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from lmsd.data.builders import shapes as module
from lmsd.data.builders.shapes import (
    BACKGROUNDS,
    COLORS,
    POSITIONS,
    SHAPES,
    SIZES,
    WORDS,
    Scene,
    check,
    class_names,
    parse_caption,
    random_scene,
    read_scenes,
    render,
)
from lmsd.errors import UserError


def scenes(count, seed=0):
    rng = np.random.default_rng(seed)
    return [random_scene(rng) for _ in range(count)]


def pictures(drawn, size):
    return np.stack([render(scene, size) for scene in drawn])


def as_floats(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.mark.parametrize(("size", "count"), [(16, 1500), (24, 500), (32, 500), (64, 500)])
def test_every_word_reads_back_from_a_clean_picture(size, count):
    drawn = scenes(count)
    found = read_scenes(pictures(drawn, size))
    seen = {**found.words, "background": found.background}
    for (word, numbers), names in zip(
        seen.items(), (SHAPES, COLORS, SIZES, POSITIONS, BACKGROUNDS), strict=True
    ):
        assert [names[i] for i in numbers] == [getattr(scene, word) for scene in drawn], word


def test_every_combination_of_words_reads_back_at_the_smallest_size():
    drawn = [
        Scene(shape, color, size, position, background)
        for shape in SHAPES
        for color in COLORS
        for size in SIZES
        for position in POSITIONS
        for background in BACKGROUNDS
    ]
    right = check(pictures(drawn, 16), [scene.caption() for scene in drawn])
    assert len(drawn) == 900
    assert right["all"].all()


def test_place_and_radius_read_back_too():
    drawn = scenes(40)
    found = read_scenes(pictures(drawn, 32))
    for scene, center, radius in zip(drawn, found.center, found.radius, strict=True):
        place = module._PLACE[POSITIONS.index(scene.position)]
        assert np.allclose(center - place, scene.shift, atol=0.01)
        assert radius / module._RADIUS[SIZES.index(scene.size)] == pytest.approx(scene.scale, rel=0.03)


@pytest.mark.parametrize(
    "harm",
    [
        lambda x, rng: x + rng.normal(0, 12, x.shape),
        lambda x, rng: x * rng.uniform(0.9, 1.1, (len(x), 1, 1, 3)),
        lambda x, rng: np.stack(
            [np.asarray(Image.fromarray(i).filter(ImageFilter.GaussianBlur(0.5))) for i in x]
        ),
    ],
    ids=["noise", "color cast", "blur"],
)
def test_mild_harm_changes_no_word(harm):
    drawn = scenes(500, seed=3)
    rng = np.random.default_rng(0)
    harmed = np.clip(np.round(harm(pictures(drawn, 16), rng)), 0, 255).astype(np.uint8)
    assert check(harmed, [scene.caption() for scene in drawn])["all"].mean() >= 0.995


def test_two_stray_pixels_change_no_word():
    drawn = scenes(500, seed=4)
    images, rng = pictures(drawn, 16), np.random.default_rng(0)
    for _ in range(2):
        rows, columns = rng.integers(0, 16, (2, len(images)))
        images[np.arange(len(images)), rows, columns] = rng.integers(0, 256, (len(images), 3))
    assert check(images, [scene.caption() for scene in drawn])["all"].mean() >= 0.995


@pytest.mark.parametrize("word", WORDS)
def test_each_wrong_word_is_found_out_and_no_other_blamed(word):
    names = {"shape": SHAPES, "color": COLORS, "size": SIZES, "position": POSITIONS}[word]
    drawn = scenes(200, seed=5)
    wrong = [replace(scene, **{word: names[names.index(getattr(scene, word)) - 1]}) for scene in drawn]
    right = check(pictures(drawn, 16), [scene.caption() for scene in wrong])
    assert not right[word].any()
    assert not right["all"].any()
    assert all(right[other].all() for other in WORDS if other != word)


def test_what_is_no_scene_is_wrong_in_every_word():
    rng = np.random.default_rng(0)
    drawn = scenes(100, seed=6)
    nothing = {
        "noise": rng.integers(0, 256, (100, 16, 16, 3), dtype=np.uint8),
        "flat": np.full((100, 16, 16, 3), 120, np.uint8),
        "mean": np.broadcast_to(pictures(drawn, 16).mean(0).astype(np.uint8), (100, 16, 16, 3)),
    }
    for name, images in nothing.items():
        assert not check(images, [scene.caption() for scene in drawn])["all"].any(), name
    assert (np.array(list(read_scenes(nothing["flat"]).words.values())) == -1).all()


@pytest.mark.parametrize("color", COLORS)
def test_a_second_shape_of_the_same_size_is_refused(color):
    left, right = Scene("square", "red", "small", "left"), Scene("square", color, "small", "right")
    both = np.maximum(render(left, 32), render(right, 32))
    captions = [left.caption(), left.caption(), right.caption()]
    found = check(np.stack([render(left, 32), both, both]), captions)
    assert found["all"].tolist() == [True, False, False]


def test_floats_and_bytes_read_alike():
    drawn = scenes(64, seed=7)
    images = pictures(drawn, 16)
    captions = [scene.caption() for scene in scenes(64, seed=8)]
    for one, other in zip(
        check(images, captions).values(), check(as_floats(images), captions).values(), strict=True
    ):
        assert np.array_equal(one, other)
    assert check(as_floats(images), [scene.caption() for scene in drawn])["all"].all()


def test_captions_read_back():
    for scene in scenes(200, seed=9):
        plain = parse_caption(f" {scene.caption().capitalize()}. ")
        assert all(getattr(plain, word) == getattr(scene, word) for word in WORDS)
        assert class_names()[scene.label] == f"{scene.color} {scene.shape}"
    assert Scene("circle", "red", "large", "left").caption() == "a large red circle on the left"


@pytest.mark.parametrize("text", ["", "a red circle", "a large red circle on the left and a dog", "a frog"])
def test_another_text_is_no_scene(text):
    with pytest.raises(UserError, match="a large red circle on the left"):
        parse_caption(text)


def test_pictures_too_small_to_tell_apart_are_refused():
    with pytest.raises(UserError, match="image_size=16"):
        render(Scene("circle", "red", "large", "left"), 15)


def test_edges_are_antialiased_and_area_is_that_of_the_shape():
    scene = Scene("circle", "blue", "large", "center", "black")
    image = render(scene, 64).astype(float)
    share = (image[..., 2] - 22) / (225 - 22)
    assert share.sum() / 64**2 == pytest.approx(np.pi * 0.26**2, rel=0.01)
    assert ((share > 0.05) & (share < 0.95)).sum() > 30


def test_reading_takes_less_than_a_millisecond_an_image():
    drawn = scenes(1000, seed=10)
    images, captions = as_floats(pictures(drawn, 16)), [scene.caption() for scene in drawn]
    start = time.process_time()
    check(images, captions)
    assert time.process_time() - start < 1.0
