"""Real classes of torchmetrics as scores: what each kind gets, and which are refused."""

import socket
import time

import pytest
import torch
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure, TotalVariation
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from torchmetrics.multimodal.clip_score import CLIPScore

from lmsd.errors import UserError
from lmsd.evaluation.foreign import Foreign, as_levels, opened, taken


class Means(torch.nn.Module):
    num_features = 24

    def forward(self, x):
        return x.float().mean(dim=2).flatten(1)


class Words(TotalVariation):
    """Counts the captions' words that it is told with the images."""

    def update(self, images: torch.Tensor, text: list[str]) -> None:
        assert images.dtype == torch.uint8
        super().update(images.float())
        self.words = [*getattr(self, "words", []), *text]


def drawn(seed):
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randint(0, 256, (60, 3, 8, 8), generator=generator).to(torch.uint8).split(25))


MADE, REAL = [drawn(0), drawn(1)], drawn(2)


def test_real_and_generated_images():
    found = Foreign("theirs", FrechetInceptionDistance(feature=Means())).score(MADE, REAL, None)
    for seed in (0, 1):
        alone = FrechetInceptionDistance(feature=Means())
        for real, parts in ((True, REAL), (False, MADE[seed])):
            alone.update(torch.cat(parts), real=real)
        assert found["theirs"].by_seed[seed] == pytest.approx(float(alone.compute()), rel=1e-6)
    kid = Foreign("kid", KernelInceptionDistance(feature=Means(), subsets=3, subset_size=20))
    assert set(kid.score(MADE, REAL, None)) == {"kid", "kid_1"}, "mean and deviation"


def test_generated_images_alone_on_their_scale():
    found = Foreign("tv", TotalVariation()).score(MADE[:1], REAL, None)["tv"]
    alone = TotalVariation()
    alone.update(torch.cat(MADE[0]).float() / 255)
    assert found.interval.value == pytest.approx(float(alone.compute()), rel=1e-5)
    assert not Foreign("is", InceptionScore(feature=Means())).floats
    assert Foreign("is", InceptionScore(feature=Means(), normalize=True)).floats


def test_captions_go_with_their_images():
    metric = Words()
    captions = [f"caption {row}" for row in range(60)]
    Foreign("words", metric).score(MADE[:1], REAL, captions)
    assert metric.words == captions
    with pytest.raises(UserError, match=r"metrics.words reads captions, and the held-out set has none"):
        taken({"words": Words()}, (3, 8, 8), None)


@pytest.mark.parametrize("make", [lambda: PeakSignalNoiseRatio(1.0), StructuralSimilarityIndexMeasure])
def test_pairs_are_refused(make):
    with pytest.raises(
        UserError, match=r"metrics.it: .* takes \(preds, target\), an image and its own original"
    ):
        Foreign("it", make())


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("theirs", FrechetInceptionDistance, r"needs a package or weights .* nothing is downloaded: Frechet"),
        ("theirs", lambda: CLIPScore("openai/clip-vit-base-patch16"), "nothing is downloaded: .*connect"),
        ("theirs", lambda: torch.hub.load_state_dict_from_url("https://example.com/no.pt"), "downloaded: "),
        ("theirs", lambda: LearnedPerceptualImagePatchSimilarity(), "torchvision is installed"),
        ("theirs", lambda: TotalVariation(reduktion="sum"), "cannot be made: .*reduktion"),
        ("theirs", lambda: torch.nn.Flatten(), "makes a Flatten, no torchmetrics.Metric"),
        ("theirs", lambda: PeakSignalNoiseRatio(1.0), "an image and its own original"),
        *((name, TotalVariation, "take another name") for name in ("fid", "theirs_real", "a-b")),
    ],
)
def test_what_cannot_be_made_here_is_refused_at_once(name, make, said, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    began, found = time.perf_counter(), socket.getaddrinfo
    with pytest.raises(UserError, match=f"evaluate.metrics.{name}.*{said}"):
        opened(name, make)
    assert time.perf_counter() - began < 10.0, "no retries"
    assert socket.getaddrinfo is found


def test_images_that_a_metric_does_not_take_are_told_before_any_is_made():
    with pytest.raises(UserError, match=r"metrics.it does not take images \[2, 1, 8, 8\]: "):
        taken({"it": FrechetInceptionDistance(feature=Means(), input_img_size=(3, 8, 8))}, (1, 8, 8), None)
    (metric,) = taken({"it": TotalVariation()}, (1, 8, 8), None)
    assert int(metric.metric.num_elements) == 0, "as new"


def test_levels_are_the_images_own():
    assert as_levels(torch.tensor([[[[-1.0, 1.0]]]])).tolist() == [[[[0, 255]]]]


def test_an_evaluation_takes_them_by_their_names():
    """The images of the evaluation itself, real and generated, in its own order."""
    from tiny_set import TinySet, blobs

    from lmsd.evaluation import Evaluator
    from lmsd.features.cnn import LMSDCNN, Extractor, Recipe
    from lmsd.features.training import Training

    recipe = Recipe(1, 8, "label", ("0", "1", "2", "3"), Training(0, 1, 0.0, "none", 0), 0, "", "")
    evaluator = Evaluator(TinySet(90, 2), Extractor(LMSDCNN(1, 8, 4).eval(), recipe, "ab" * 32), chunk=40)
    metrics = {"theirs": FrechetInceptionDistance(feature=Flat()), "tv": TotalVariation()}
    found = evaluator(lambda batch, rng: blobs(batch.label, 5), seeds=(0, 1), metrics=metrics)
    assert found["theirs"].value > 0.0
    assert len(found.scores["tv"].by_seed) == 2
    assert "theirs" not in evaluator(lambda batch, rng: blobs(batch.label, 5)).scores
    with pytest.raises(UserError, match="an image and its own original"):
        evaluator(lambda batch, rng: blobs(batch.label, 5), metrics={"psnr": PeakSignalNoiseRatio(1.0)})


class Flat(torch.nn.Module):
    num_features = 8

    def forward(self, x):
        return x.float().mean(dim=2).flatten(1)
