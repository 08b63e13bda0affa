"""What a glance names: a grid, colors, few kinds; and nothing in real images."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lmsd.data.shardset import ShardSet
from lmsd.evaluation.looks import Captions, Looks, glance, kinds_of, sentence, spectra
from lmsd.features.random_conv import RandomExtractor
from lmsd.metrics import GROUPS, Score, jackknife
from lmsd.types import levels, scale

N, DRAWS = 512, 20
FINE = Score(jackknife(1.0, [1.0] * GROUPS), (1.0,) * GROUPS)


def quantized(x: Tensor) -> Tensor:
    return scale(x.round().clamp(0, 255).to(torch.uint8))


def with_grid(x: Tensor, height: float = 4.0, *, period: int = 4) -> Tensor:
    """Lines of so many levels, a pixel wide, every `period` pixels."""
    at = torch.arange(x.shape[-1]) % period == 0
    lines = (at[:, None] | at[None]).float()
    return quantized(x.float() + height * (lines - lines.mean()))


def saturated(x: Tensor, factor: float = 1.15) -> Tensor:
    gray = x.float().mean(dim=1, keepdim=True)
    return quantized(gray + factor * (x.float() - gray))


@pytest.fixture(scope="module")
def photographs(test_data):
    """CIFAR-10: training and test images, uint8, and the classes of both."""
    if not (test_data / "data" / "cifar10").is_dir():
        pytest.skip("LMSD_TEST_DATA has no data/cifar10")
    data = ShardSet(str(test_data / "data" / "cifar10"), image_size=32)
    train, test = data.split_set("train"), data.split_set("test")
    rows, others = range(4_000), range(4_000)
    return levels(train.images(rows)), levels(test.images(others)), train.labels(rows), test.labels(others)


@pytest.fixture(scope="module")
def seen(photographs):
    """What `Looks` sees of training images, of test images, and of these with each damage."""
    train, test, *_ = photographs
    look = Looks()
    made = {
        "real": scale(test), "grid": with_grid(test), "color": saturated(test),
        "both": with_grid(levels(saturated(test))),
    }  # fmt: skip
    return look(scale(train))[0], {name: look(images)[0] for name, images in made.items()}


def drawn(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:N]


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ("real", []),
        ("grid", ["a grid of 4 pixels"]),
        ("color", ["over-saturated"]),
        ("both", ["a grid of 4 pixels", "over-saturated"]),
    ],
)
def test_grid_and_saturation_are_named_in_every_draw_and_nothing_in_real_images(damage, named, seen):
    train, known = seen
    for seed in range(DRAWS):
        rows = drawn(len(known[damage]), seed)
        assert glance([known[damage][rows]], train, FINE).named == named, seed


@pytest.fixture(scope="module")
def features(photographs):
    """Random convolutions of training and of test images."""
    extractor = RandomExtractor(3)
    return [extractor(scale(each))[0] for each in photographs[:2]]


def kinds_drawn(photographs, kinds: Tensor | None, seed: int) -> tuple[Tensor, Tensor]:
    """Rows of held-out images, and of others of the same classes: of half of the kinds of each, if any."""
    labels = photographs[3]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    real, rest = order[:N], order[N:]
    if kinds is not None:
        kept = torch.stack([torch.rand(6, generator=generator).argsort() < 3 for _ in range(10)])
        rest = rest[kept[labels[rest], kinds[rest]]]
    fake = []
    for label in labels[real].tolist():
        own = rest[labels[rest] == label]
        fake.append(int(own[torch.randint(len(own), (1,), generator=generator)]))
    return real, torch.tensor(fake)


@pytest.fixture(scope="module")
def planted(photographs, features):
    """Six kinds of every class: clusters of test images, found apart from those that `kinds_of` counts in."""
    from scipy.cluster.vq import kmeans2

    labels = photographs[3]
    kinds = torch.zeros(len(labels), dtype=torch.int64)
    for label in range(10):
        rows = labels == label
        found = kmeans2(features[1][rows].double().numpy(), 6, minit="++", seed=1)[1]
        kinds[rows] = torch.from_numpy(found).long()
    return kinds


@pytest.mark.parametrize(("half", "named"), [(True, ["few kinds in a caption"]), (False, [])])
def test_half_of_the_kinds_in_a_caption_are_named_in_every_draw(
    half, named, photographs, features, planted, seen
):
    train, known = seen
    for seed in range(DRAWS):
        real, fake = kinds_drawn(photographs, planted if half else None, seed)
        captions = Captions(photographs[3][real].tolist(), photographs[2].tolist())
        kinds = kinds_of([features[1][fake]], features[1][real], features[0], captions)
        found = [each for each in glance([known["real"][fake]], train, kinds).named if "kinds" in each]
        assert found == named, (seed, str(kinds.interval))


def smooth(n: int, seed: int, side: int = 32) -> Tensor:
    """Smooth pictures in color, uint8."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(n, 3, side // 4, side // 4, generator=generator)
    noise = 6 * torch.randn(n, 3, side, side, generator=generator)
    return levels(quantized(255 * F.interpolate(small, (side, side), mode="bicubic") + noise))


def with_blocks(x: Tensor, height: float, *, period: int) -> Tensor:
    """Every square of `period` pixels brighter or darker by itself, as a net's patches are."""
    side = x.shape[-1] // period
    each = torch.randn(len(x), 1, side, side, generator=torch.Generator().manual_seed(7))
    return quantized(x.float() + height * F.interpolate(each, x.shape[-2:]))


@pytest.mark.parametrize(
    ("period", "kind"), [(4, "lines"), (8, "lines"), (2, "blocks"), (4, "blocks"), (8, "blocks")]
)
def test_the_period_of_a_grid_is_named_be_it_lines_or_patches(period, kind):
    look = Looks()
    train = look(scale(smooth(600, 0)))[0]
    images = smooth(300, 1)
    made = (with_grid if kind == "lines" else with_blocks)(images, 16.0, period=period)
    found = glance([look(made)[0]], train, FINE)
    assert found.named == [f"a grid of {period} pixels"]
    assert found.scores["grid"].interval.low > 0.0
    assert glance([look(scale(images))[0]], train, FINE).named == []


def test_a_grid_that_real_images_have_and_the_model_lacks_is_none():
    """Photographs that were stored as JPEG have one of 8 pixels."""
    look = Looks()
    train = look(with_blocks(smooth(600, 0), 8.0, period=8))[0]
    assert glance([look(scale(smooth(300, 1)))[0]], train, FINE).named == []
    assert glance([look(with_blocks(smooth(300, 1), 8.0, period=8))[0]], train, FINE).named == []
    doubled = glance([look(with_blocks(smooth(300, 1), 24.0, period=8))[0]], train, FINE)
    assert doubled.named == ["a grid of 8 pixels"]


def test_a_grid_is_a_peak_of_the_spectrum():
    look = Looks()
    images = smooth(100, 1)
    found = glance([look(with_grid(images, 8.0))[0]], look(scale(images))[0], FINE)
    made, real = (torch.tensor(each) for each in found.spectrum["axis"])
    assert int((made / real)[1:].argmax()) + 1 in (8, 16), "32 pixels hold 8 lines: 8 cycles, or their double"
    assert [title for title, svg in spectra({"spectrum": found.spectrum}) if svg.startswith("<svg")]
    assert spectra(None) == []


def test_faded_colors_are_named_and_gray_images_have_none():
    look = Looks()
    images = smooth(200, 1)
    train = look(scale(smooth(300, 0)))[0]
    assert "faded" in glance([look(saturated(images, 0.7))[0]], train, FINE).named
    gray = look(scale(images[:, :1]))[0]
    assert "color" not in glance([gray], gray, FINE).scores


def test_kinds_are_the_exponential_of_the_entropies_difference():
    """Eight points, one a kind; the model makes the first four of them: ½ of the kinds."""
    points = 100 * torch.eye(8)
    train = points.repeat(40, 1)
    real, fake = points.repeat(5, 1), points[:4].repeat(10, 1)
    captions = Captions([""] * 40, [""] * 320)
    found = kinds_of([fake, fake], real, train, captions).interval
    assert found.value == pytest.approx(0.5)
    assert kinds_of([real], real, train, captions).interval.value == pytest.approx(1.0)
    assert captions.numbered()[2]
    alone = Captions([str(row) for row in range(40)], [""] * 320)
    assert not alone.numbered()[2], "captions of their own are one"
    assert kinds_of([fake], real, train, alone).interval.value == pytest.approx(0.5)


def test_the_sentence():
    assert sentence([]).startswith("At a glance nothing is off")
    assert sentence(["a grid of 4 pixels", "over-saturated"]) == (
        "What is off at a glance: a grid of 4 pixels, over-saturated."
    )
    assert math.isfinite(FINE.interval.value)
