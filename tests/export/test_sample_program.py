"""The program that stands in exported folders: its hash, its noise and its tokens are ours."""

from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("onnxruntime", reason="pip install 'lmsd[export]'")

from lmsd.export import sample, standalone
from lmsd.models.tokenizer import encode_caption
from lmsd.rng import Rng

SOURCE = Path(sample.__file__)


def test_it_is_short_and_needs_three_packages() -> None:
    text = SOURCE.read_text()
    assert text.count("\n") <= 120
    assert "lmsd" not in {
        line.split()[1].split(".")[0] for line in text.splitlines() if line[:5] in ("impor", "from ")
    }


def test_a_million_words_are_equal() -> None:
    """Over seeds, places, turns and tags; the largest of each, too."""
    count, compared = 1000, 0
    for seed, turn, tag in [(0, 0, "x_T"), (7, 3, "step"), (2**63 - 1, 49, "z"), (12345, 1, "x_T")]:
        places = torch.tensor([0, 1, 2, 255, 2**40, *range(1000, 1245)])
        ours = Rng(seed, places, turn=turn).bits(count, tag)
        assert np.array_equal(
            ours.numpy().view(np.uint64), sample.bits(seed, places.numpy(), turn, tag, count)
        )
        compared += ours.numel()
    assert compared >= 1_000_000


@pytest.mark.parametrize("shape", [[3, 5, 5], [4], [1, 8, 8]])
def test_the_noise_is_ours(shape: list[int]) -> None:
    ours = Rng(11, torch.arange(6), turn=2).normal(shape, "step")
    theirs = sample.normal(11, range(6), 2, "step", shape)
    assert theirs.dtype == np.float32
    assert np.abs(ours.numpy() - theirs).max() < 1e-6


def program(length: int = 8) -> tuple[sample.Model, str]:
    """A program with the tokenizer of a tiny model, without its nets."""
    conditioner = tiny_models.model("digits").generator.conditioner
    found = sample.Model.__new__(sample.Model)
    found.told = {**standalone._tokenizer(conditioner), "length": length}
    return found, conditioner.tokenizer  # type: ignore[return-value]


ODD = [
    "",
    "a red circle",
    "it's  Übergröße 42 !?'s",
    "a 'large'\t(blue)\nring…",
    "日本 x",
    "İstanbul ΑΣ",
    "½ Ⅷ ²",
    "é e\u0301",
]


@pytest.mark.parametrize("caption", ODD)
def test_odd_captions_have_our_tokens(caption: str) -> None:
    model, text = program(40)
    assert model.ids(caption) == list(encode_caption(text, caption, 40))


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Cn", "Co"]), max_size=24))
def test_any_caption_has_our_tokens(caption: str) -> None:
    model, text = program(12)
    assert model.ids(caption) == list(encode_caption(text, caption, 12))
