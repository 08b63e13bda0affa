"""Real classes of torchmetrics as scores: what each kind gets, and which are refused."""

import pytest
import torch
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure, TotalVariation
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from lmsd.errors import UserError
from lmsd.evaluation.foreign import Foreign, as_levels


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
        Foreign("words", Words()).score(MADE[:1], REAL, None)


@pytest.mark.parametrize("make", [lambda: PeakSignalNoiseRatio(1.0), StructuralSimilarityIndexMeasure])
def test_pairs_are_refused(make):
    with pytest.raises(
        UserError, match=r"metrics.it: .* takes \(preds, target\), an image and its own original"
    ):
        Foreign("it", make())


def test_levels_are_the_images_own():
    assert as_levels(torch.tensor([[[[-1.0, 1.0]]]])).tolist() == [[[[0, 255]]]]


def test_an_evaluation_takes_them_by_their_names():
    """The images of the evaluation itself, real and generated, in its own order."""
    from tiny_set import TinySet, blobs

    from lmsd.evaluation import Evaluator
    from lmsd.features.cnn import LMSDCNN, Extractor, Recipe

    recipe = Recipe(1, 8, "label", ("0", "1", "2", "3"), 0, 1, 0.0, "none", 0, 0, "", "")
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
