"""lmsd-ssl learns without a label, comes back from disk, and random-conv is the same everywhere."""

import pytest
import torch
from test_cnn import Digits
from torch.nn import functional as F

from lmsd.errors import UserError
from lmsd.features.cnn import FEATURES, load_extractor, save_extractor, train_extractor
from lmsd.features.random_conv import RandomExtractor
from lmsd.features.ssl import effort, train_without_labels, vicreg, view


class Unlabeled(Digits):
    """Digits whose labels and captions may not even be asked for."""

    def labels(self, indices):
        raise AssertionError("a label was read")

    captions = labels


@pytest.fixture(scope="module")
def trained():
    return train_without_labels(Unlabeled(0, 1297), images=10_000, data="digits-hash")


def neighbors_right(features, labels):
    gaps = torch.cdist(features, features).fill_diagonal_(torch.inf)
    return float((labels[gaps.argmin(dim=1)] == labels).double().mean())


def test_it_learns_digits_without_having_seen_a_label(trained):
    held_out = Digits(1297, 1797)
    features, logits = trained(held_out.x)
    assert features.shape == (500, FEATURES)
    assert logits.shape == (500, 0)
    assert trained.right(logits, held_out.y, None) is None
    assert (trained.kind, trained.exclusive, trained.recipe.accuracy) == ("lmsd-ssl", False, None)
    untrained = train_without_labels(Unlabeled(0, 1297), images=1)
    learned = neighbors_right(features, held_out.y)
    assert learned > 0.9
    assert learned > neighbors_right(untrained(held_out.x)[0], held_out.y)


def test_no_feature_is_dead(trained):
    variance = trained(Digits(0, 1297).x)[0].double().var(dim=0)
    assert variance.mean().item() == pytest.approx(1.0, rel=1e-2)
    assert variance.min() > 1e-3


def test_saved_and_loaded_it_is_the_same_beside_the_classifier(trained, tmp_path):
    save_extractor(train_extractor(Digits(0, 100), images=200), tmp_path)
    save_extractor(trained, tmp_path)
    again = load_extractor(tmp_path, kind="lmsd-ssl")
    assert again.recipe == trained.recipe
    assert again.name == trained.name == f"lmsd-ssl@{trained.sha256[:4]}"
    assert torch.equal(again(Digits(0, 50).x)[0], trained(Digits(0, 50).x)[0])
    with pytest.raises(UserError, match=r"no lmsd-ssl\.safetensors"):
        load_extractor(tmp_path / "elsewhere", kind="lmsd-ssl")


def test_the_seed_is_the_only_randomness():
    first, second = (train_without_labels(Unlabeled(0, 300), images=600, seed=seed) for seed in (5, 5))
    assert first.sha256 == second.sha256
    assert first.sha256 != train_without_labels(Unlabeled(0, 300), images=600, seed=6).sha256


def test_a_view_moves_and_hides_and_changes_no_pixel_otherwise():
    x = torch.rand(64, 3, 16, 16) * 0.5 + 0.25
    seen = view(x, "shift", torch.Generator().manual_seed(0))
    hidden = (seen == 0.0).all(dim=1)
    assert 0.2 < float(hidden.double().mean()) < 0.3
    blocks = F.avg_pool2d(hidden.float()[:, None], 4)
    assert set(blocks.unique().tolist()) == {0.0, 1.0}, "whole blocks"
    assert torch.isin(seen[5][:, ~hidden[5]], x[5]).all()


def test_the_loss_is_its_formula():
    one = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    other = one * 0.3 + 0.1
    wanted = 10 * (one - other).square().mean()
    for z in (one, other):
        c = z.T.cov()
        wanted += 12.5 * torch.clamp(1 - (c.diagonal() + 1e-4).sqrt(), min=0).mean()
        wanted += 0.5 * (c - torch.diag(c.diagonal())).square().sum() / 4
    torch.testing.assert_close(vicreg(one, other), wanted)


def test_the_effort_goes_by_the_size_of_the_data():
    assert [effort(n) for n in (64, 1297, 45_000)] == [6_400, 30_000, 135_000]


@pytest.mark.parametrize("channels", [1, 3])
def test_random_convolutions_are_the_same_everywhere_and_see_a_grid(channels):
    one, other = RandomExtractor(channels), RandomExtractor(channels)
    assert one.sha256 == other.sha256 != RandomExtractor(channels, seed=1).sha256
    x = torch.rand(20, channels, 32, 32, generator=torch.Generator().manual_seed(0)) - 0.5
    smooth = F.avg_pool2d(x, 5, 1, 2)
    features, logits = one(smooth)
    assert features.shape == (20, 96)
    assert logits.shape == (20, 0)
    torch.testing.assert_close(features[3], one(smooth[3:4])[0][0], atol=1e-5, rtol=1e-5)
    grid = smooth.clone()
    grid[..., ::4, :] += 4 / 127.5
    moved = (one(grid)[0] - features).mean(dim=0).abs() / features.std(dim=0)
    assert float(moved.max()) > 1.0


def test_random_convolutions_take_small_images():
    assert RandomExtractor(1)(torch.zeros(2, 1, 8, 8))[0].isfinite().all()
    with pytest.raises(UserError, match="see images of 8 pixels or more"):
        RandomExtractor(1)(torch.zeros(2, 1, 4, 4))


def test_one_image_has_no_other_to_be_told_from():
    with pytest.raises(UserError, match="tells images from each other and the train split holds one"):
        train_without_labels(Unlabeled(0, 1))
