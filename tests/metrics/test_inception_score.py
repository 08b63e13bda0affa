"""The Inception Score: against torchmetrics, by hand, at its ends."""

import numpy as np
import pytest
import torch

from lmsd.errors import UserError
from lmsd.metrics import inception_score, inception_scores


def draw(n: int, c: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(n, c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_equals_numpy_split_by_split():
    logits = draw(103, 7)
    expected = []
    for part in np.array_split(logits.numpy(), 1):
        p = np.exp(part) / np.exp(part).sum(axis=1, keepdims=True)
        kl = (p * (np.log(p) - np.log(p.mean(axis=0)))).sum(axis=1)
        expected.append(np.exp(kl.mean()))
    assert inception_scores(logits, splits=1) == pytest.approx(expected, rel=1e-9)


def test_equals_torchmetrics(monkeypatch):
    """Mean and spread over the same ten splits of the same order."""
    from torchmetrics.image.inception import InceptionScore

    logits = draw(120, 11)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(5))
    monkeypatch.setattr(torch, "randperm", lambda n: order)
    theirs = InceptionScore(feature=torch.nn.Identity(), splits=10)
    theirs.features = [logits]
    mean, spread = theirs.compute()
    ours = inception_scores(logits[order])
    assert inception_score(logits[order]).value == pytest.approx(float(mean), rel=1e-9)
    assert torch.tensor(ours, dtype=torch.float64).std().item() == pytest.approx(float(spread), rel=1e-9)


@pytest.mark.parametrize(("n", "splits"), [(91, 10), (25, 10), (20, 10), (103, 7)])
def test_parts_are_equal_but_for_one_image(n, splits):
    logits = draw(n, 5)
    whole = [inception_scores(logits[rows], splits=1)[0] for rows in np.array_split(np.arange(n), splits)]
    assert inception_scores(logits, splits=splits) == pytest.approx(whole, rel=1e-12)


def test_one_split_has_no_interval():
    found = inception_score(draw(20, 3), splits=1)
    assert found.value == inception_scores(draw(20, 3), splits=1)[0]
    assert np.isnan([found.low, found.high]).all()
    assert str(found) == f"{found.value:.3g}"
    with pytest.raises(UserError, match="splits=0: the score is taken over one part"):
        inception_score(draw(20, 3), splits=0)


def test_ends():
    """Sure and evenly spread: the number of classes. Sure of one class, or never sure: 1."""
    sure = torch.eye(5, dtype=torch.float64).repeat(8, 1) * 1e4
    assert inception_score(sure, splits=2).value == pytest.approx(5.0, rel=1e-12)
    assert inception_score(sure[:1].expand(20, 5), splits=2).value == pytest.approx(1.0, abs=1e-12)
    assert inception_score(torch.zeros(20, 5), splits=2).value == pytest.approx(1.0, abs=1e-12)


def test_too_few_are_refused():
    with pytest.raises(UserError, match="19 images are too few for 10 splits"):
        inception_score(draw(19, 3))
