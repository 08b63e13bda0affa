"""What the catalog says of scores is so: how many images they take."""

import pytest
import torch

from lmsd.evaluation.catalog import CATALOG, FEATURES
from lmsd.evaluation.measures import class_scores, measures
from lmsd.features import cnn, inception


@pytest.mark.parametrize(
    "name", ["kid", "kid_paired", "fd", "fd_infinity", "fd_matched", "fd_ratio", "recall"]
)
def test_below_so_many_images_it_is_left_out(name: str) -> None:
    least = CATALOG[name].least
    random = torch.Generator().manual_seed(0)
    fake, real = (torch.randn(least, 4, generator=random) for _ in range(2))
    assert name in measures([fake], real, [""] * least).scores
    assert name not in measures([fake[1:]], real[1:], [""] * (least - 1)).scores


def test_neighborhoods_take_the_same_number() -> None:
    names = ("precision", "recall", "density", "coverage")
    assert len({CATALOG[name].least for name in names}) == 1


def test_frechet_distances_take_twice_the_features() -> None:
    random = torch.Generator().manual_seed(0)
    fake, real = (torch.randn(128, 64, generator=random) for _ in range(2))
    assert "fd" in measures([fake], real, [""] * 128).scores
    assert "fd" not in measures([fake[1:]], real[1:], [""] * 127).scores
    ours = dict.fromkeys(("lmsd-cnn", "lmsd-ssl"), cnn.FEATURES)
    assert {**ours, "random-conv": 96, "inception": 2048} == FEATURES
    assert inception.InceptionExtractor.exclusive
    logits = torch.randn(CATALOG["class_score"].least, 10, generator=random)
    assert "class_score" in class_scores([logits], logits)
