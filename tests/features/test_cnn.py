"""lmsd-cnn: what it learns, that it is the same every time, that it comes back from disk."""

import json
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lmsd.errors import UserError
from lmsd.features.cnn import FEATURES, LMSDCNN, captions_of, load_extractor, save_extractor, train_extractor
from lmsd.features.training import augmented

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


class Digits:
    """A slice of scikit-learn's digits; what the samples carry can be taken away."""

    def __init__(self, first: int, last: int, *, labels: bool = True, captions: bool = True) -> None:
        data = pytest.importorskip("sklearn.datasets").load_digits()
        order = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(0))[first:last]
        self.x = (torch.tensor(data.images).float()[:, None] / 8 - 1)[order]
        self.y = torch.tensor(data.target)[order]
        self.has_labels, self.has_captions = labels, captions

    def __len__(self) -> int:
        return len(self.x)

    def images(self, indices) -> Tensor:
        return self.x[torch.as_tensor(list(indices))]

    def labels(self, indices) -> Tensor | None:
        return self.y[torch.as_tensor(list(indices))] if self.has_labels else None

    def captions(self, indices) -> list[str]:
        if not self.has_captions:
            raise UserError("no captions")
        return [f"a handwritten {WORDS[self.y[index]]}" for index in indices]


@pytest.fixture(scope="module")
def trained():
    return train_extractor(Digits(0, 1297), Digits(1297, 1797), images=20_000, data="digits-hash")


def test_learns_the_digits(trained):
    assert trained.recipe.accuracy >= 0.97
    assert trained.recipe.target == "label"
    held_out = Digits(1297, 1797)
    features, logits = trained(held_out.x)
    right = (logits.argmax(dim=1) == held_out.y).double().mean().item()
    assert right == trained.recipe.accuracy
    assert features.shape == (500, FEATURES)


def test_features_are_alive_and_of_mean_variance_one(trained):
    features = trained(Digits(0, 1297).x)[0].double()
    variance = features.var(dim=0)
    assert variance.mean().item() == pytest.approx(1.0, rel=1e-2)
    assert variance.min() > 1e-4, "no feature may be dead: FD would be singular"


def test_saved_and_loaded_it_is_the_same(trained, tmp_path):
    path = save_extractor(trained, tmp_path / "kept")
    again = load_extractor(tmp_path / "kept")
    assert again.recipe == trained.recipe
    assert again.name == trained.name == f"lmsd-cnn@{trained.sha256[:4]}"
    x = Digits(0, 50).x
    assert torch.equal(again(x)[0], trained(x)[0])
    assert json.loads(path.with_suffix(".json").read_text())["recipe"]["data"] == "digits-hash"
    assert torch.equal(load_extractor(path)(x)[1], trained(x)[1])


def test_damage_and_absence_are_told(trained, tmp_path):
    path = save_extractor(trained, tmp_path)
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match="damaged"):
        load_extractor(tmp_path)
    with pytest.raises(UserError, match=r"no lmsd-cnn\.safetensors"):
        load_extractor(tmp_path / "elsewhere")


def test_the_seed_is_the_only_randomness():
    split = Digits(0, 200)
    torch.manual_seed(1)
    first = train_extractor(split, images=1500, seed=5)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    second = train_extractor(split, images=1500, seed=5)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state), "the caller's generator stays as it was"
    assert first.sha256 == second.sha256
    assert first.sha256 != train_extractor(split, images=1500, seed=6).sha256


def test_captions_alone_are_learned_word_by_word():
    found = train_extractor(
        Digits(0, 1297, labels=False), Digits(1297, 1797, labels=False), images=15_000, augment="none"
    )
    assert found.recipe.target == "words"
    assert set(found.recipe.classes) == set(WORDS), "words that every caption has tell nothing"
    assert found.recipe.accuracy > 0.9
    split = Digits(1297, 1400, labels=False)
    logits = found(split.x)[1]
    right = found.right(logits, None, split.captions(range(103)))
    wrong = found.right(logits, None, split.captions(range(1, 103)) + split.captions([0]))
    assert right.double().mean() > 0.9
    assert wrong.double().mean() < 0.3, "the captions of other images"


def test_several_words_must_all_be_right():
    split = Digits(0, 40, labels=False)
    extractor = train_extractor(split, images=256, batch_size=32)
    place = {word: column for column, word in enumerate(extractor.recipe.classes)}
    logits = torch.full((3, len(place)), -1.0)
    logits[:, place["two"]] = 1.0
    logits[1:, place["six"]] = 1.0
    captions = ["a two and a six", "a two and a six", "a handwritten two"]
    assert extractor.right(logits, None, captions).tolist() == [False, True, False]


def test_nothing_to_learn_is_refused():
    with pytest.raises(UserError, match="nothing to learn"):
        train_extractor(Digits(0, 20, labels=False, captions=False))
    assert captions_of(Digits(0, 20, captions=False), [0]) is None


def test_wrong_images_and_missing_answers_are_refused(trained):
    with pytest.raises(UserError, match=r"trained on images \(1, 8, 8\), not \(3, 8, 8\)"):
        trained(torch.zeros(2, 3, 8, 8))
    with pytest.raises(UserError, match="class indices"):
        trained.right(torch.zeros(2, 10), None, ["a", "b"])


@pytest.mark.parametrize(("channels", "size", "classes"), [(1, 8, 10), (3, 16, 7), (3, 32, 10), (3, 64, 100)])
def test_sizes(channels, size, classes):
    net = LMSDCNN(channels, size, classes).eval()
    x = torch.randn(3, channels, size, size, generator=torch.Generator().manual_seed(0))
    features, logits = net(x)
    assert features.shape == (3, FEATURES)
    assert logits.shape == (3, classes)
    one = net(x[1:2])[0]
    torch.testing.assert_close(one, features[1:2], rtol=1e-4, atol=1e-5)  # no sample sees another


def test_sizes_that_do_not_fit_are_refused():
    for size in (4, 50):
        with pytest.raises(UserError, match=f"not {size}"):
            LMSDCNN(3, size, 10)


def test_augmentation_shifts_and_mirrors():
    x = torch.arange(2 * 64.0).view(2, 1, 8, 8).expand(2, 3, 8, 8)
    generator = torch.Generator().manual_seed(0)
    assert augmented(x, "none", generator) is x
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="reflect")
    windows = [padded[..., i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    mirrored = [window.flip(-1) for window in windows]
    seen = set()
    for _ in range(60):
        for image, kind in (
            (augmented(x, "shift", generator), 0),
            (augmented(x, "shift_flip", generator), 1),
        ):
            for row in range(2):
                known = windows + (mirrored if kind else [])
                match = [k for k, window in enumerate(known) if torch.equal(image[row], window[row])]
                assert match, "every image is a window of the padded one"
                seen.add((kind, match[0]))
    assert len(seen) == 9 + 18


def test_progress_reaches_the_end():
    seen = []
    train_extractor(Digits(0, 100), images=1000, batch_size=50, progress=lambda *args: seen.append(args))
    assert seen[-1][:2] == (1000, 1000)
    assert all(one[0] < other[0] for one, other in pairwise(seen))


@pytest.mark.slow
def test_photographs(test_data):
    """At least 70 % of CIFAR-10's val images after six passes over train, mirrored and shifted."""
    from lmsd.data.shardset import ShardSet

    data = ShardSet(str(test_data / "data" / "cifar10"), image_size=32)
    found = train_extractor(data.split_set("train"), data.split_set("val"), augment="shift_flip")
    assert found.recipe.accuracy >= 0.70
