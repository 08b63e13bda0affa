"""CLIP score and R-precision on embeddings whose answer is known."""

import pytest
import torch

from lmsd.errors import UserError
from lmsd.features.base import in_range
from lmsd.metrics import clip_scores, r_precision


def draw(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_clip_score_is_the_clamped_cosine():
    images, texts = draw(50, 6), draw(50, 6, seed=1)
    cosine = torch.nn.functional.cosine_similarity(images, texts)
    torch.testing.assert_close(clip_scores(images, texts), 2.5 * cosine.clamp(min=0), rtol=1e-12, atol=1e-14)
    assert clip_scores(3 * texts, texts).mean() == pytest.approx(2.5)


def test_r_precision_of_matching_and_of_unrelated_texts():
    """Right where image and text agree; one in a hundred by chance (4,000 images, binomial error)."""
    texts = draw(4000, 8)
    assert r_precision(texts[:300] + 0.01 * draw(300, 8, seed=1), texts[:300]).all()
    chance = r_precision(draw(4000, 8, seed=2), texts).double().mean().item()
    assert chance == pytest.approx(0.01, abs=4 * (0.01 * 0.99 / 4000) ** 0.5)


def test_the_same_caption_twice_does_not_count_against_an_image():
    texts = draw(10, 4).repeat(2, 1)
    assert r_precision(texts, texts, candidates=10).all()
    with pytest.raises(UserError, match="needs as many different ones, and there are 10"):
        r_precision(texts, texts, candidates=20)


def test_an_image_that_is_as_near_to_another_caption_is_not_right():
    """A model that makes one image for everything must not score."""
    texts = torch.eye(12, dtype=torch.float64)
    nowhere = torch.ones(12, 12, dtype=torch.float64)
    assert not r_precision(nowhere, texts, candidates=10).any()
    assert r_precision(nowhere + 0.01 * texts, texts, candidates=10).all()


def test_chance_is_one_in_so_many_where_captions_repeat():
    """4,000 images of 20 captions among 10: a tenth by chance, within the binomial error."""
    texts = draw(20, 8).repeat(200, 1)
    chance = r_precision(draw(4000, 8, seed=2), texts, candidates=10).double().mean().item()
    assert chance == pytest.approx(0.1, abs=4 * (0.1 * 0.9 / 4000) ** 0.5)


def test_bad_sizes_are_refused():
    with pytest.raises(UserError, match="among 100 captions needs as many different ones, and there are 50"):
        r_precision(draw(50, 3), draw(50, 3))
    with pytest.raises(UserError, match="row by row"):
        clip_scores(draw(5, 3), draw(6, 3))


def test_images_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match="NaN or infinity"):
        in_range(torch.full((1, 1, 2, 2), float("nan")))
