"""Images to train on: what they show, which are kept; nothing depends on how many are drawn at once."""

from collections import Counter

import pytest
import torch

from lmsd.errors import UserError
from lmsd.evaluation.synthesis import Filters, Law, confidences, synthesize
from lmsd.features.cnn import LMSDCNN, Extractor, Recipe, Training
from lmsd.rng import Rng
from lmsd.types import Batch, levels, scale

SHAPE = (1, 8, 8)


class Images:
    """Eight digits of one class for every two of another."""

    hash = None

    def __init__(self, count=40, *, labels=True, captions=True):
        self.count, self.told, self.said = count, labels, captions

    def __len__(self):
        return self.count

    def images(self, rows):
        return scale(levels(Rng(5, torch.as_tensor(list(rows))).uniform(SHAPE, "x") * 2 - 1))

    def labels(self, rows):
        return torch.tensor([int(row % 5 == 0) for row in rows]) if self.told else None

    def captions(self, rows):
        if not self.said:
            raise UserError("none")
        return [("zero", "one")[int(row % 5 == 0)] for row in rows]


def extractor(target="label", classes=("zero", "one")):
    torch.manual_seed(0)
    training = Training(augment="none", images=1, batch_size=1, learning_rate=0.1, seed=0)
    recipe = Recipe(1, 8, target, classes, training, 40, "x", torch.__version__)
    return Extractor(LMSDCNN(1, 8, len(classes)).eval(), recipe, "0" * 64)


def noise(batch, rng):
    return rng.uniform(SHAPE, "made") * 2 - 1


def filters(**options):
    judge = extractor()
    return Filters(judge, Images(), **{"classifier": judge, "confidence": 0.0, "near": 0.0, **options})


def test_captions_follow_the_training_law_or_are_balanced():
    for balanced, expected in ((False, 0.2), (True, 0.5)):
        law = Law(Images(), balanced=balanced, shape=SHAPE)
        batch = law.batch(torch.arange(4_000), 1)
        assert batch.label.float().mean().item() == pytest.approx(expected, abs=0.03)
        assert [("zero", "one")[label] for label in batch.label.tolist()] == batch.text


@pytest.mark.parametrize("kind", ["captions", "nothing"])
def test_a_set_without_classes(kind):
    law = Law(Images(labels=False, captions=kind == "captions"), balanced=True, shape=SHAPE)
    batch = law.batch(torch.arange(1_000), 1)
    assert batch.label is None
    if kind == "nothing":
        assert batch.text is None
    else:
        assert Counter(batch.text)["one"] == pytest.approx(500, abs=60)


def test_confidence_is_the_probability_of_what_was_asked():
    logits = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    batch = Batch(torch.zeros(2, *SHAPE), torch.arange(2), label=torch.tensor([0, 0]))
    expected = [torch.tensor(2.0).sigmoid(), torch.tensor(-3.0).sigmoid()]
    torch.testing.assert_close(confidences(extractor(), logits, batch), torch.stack(expected))
    words = Batch(torch.zeros(2, *SHAPE), torch.arange(2), text=["a zero", "one"])
    found = confidences(extractor("words"), logits, words)  # the least of "it is there" and "it is not"
    torch.testing.assert_close(found, torch.tensor([0.5, 0.5]))


def test_the_unsure_and_the_copies_are_left_out():
    images = Images()
    own = images.images(range(10))
    batch = Batch(own, torch.arange(10), label=images.labels(range(10)))
    assert set(filters()(own, batch)) == {"kept"}
    assert set(filters(near=0.1)(own, batch)) == {"copy"}  # training images themselves
    judge = extractor()
    sure = confidences(judge, judge(own)[1], batch)
    between = float(sure.median())
    assert filters(confidence=between)(own, batch) == ["kept" if s >= between else "unsure" for s in sure]


def test_copies_are_closer_than_training_images_are_to_one_another():
    judged = filters(near=0.25)
    own = judged.features
    gaps = torch.cdist(own, own).fill_diagonal_(torch.inf).amin(1)
    assert judged.threshold == pytest.approx(float(gaps.double().quantile(0.25)), rel=1e-4)


def test_the_first_that_are_kept_whatever_is_drawn_at_once():
    law = Law(Images(), balanced=False, shape=SHAPE)
    judge = extractor()
    probe = law.batch(torch.arange(200), 3)
    sure = confidences(judge, judge(scale(levels(noise(probe, Rng(3, probe.position)))))[1], probe)
    least = float(sure.double().quantile(0.5))
    runs = [synthesize(noise, law, filters(confidence=least), n=40, seed=3, chunk=chunk) for chunk in (7, 64)]
    assert torch.equal(runs[0].images, runs[1].images)
    assert runs[0].text == runs[1].text
    places = (sure >= least).nonzero()[:40, 0]
    assert runs[0].labels == probe.label[places].tolist()
    assert runs[0].told["kept"] == 40
    assert runs[0].told["unsure"] == int(places[-1]) + 1 - 40


def test_what_never_passes_ends_in_a_sentence():
    law = Law(Images(), balanced=False, shape=SHAPE)
    with pytest.raises(UserError, match=r"of 60 images 0 passed .*60 unsure"):
        synthesize(noise, law, filters(confidence=1.0), n=2, chunk=10, most=25)
    with pytest.raises(UserError, match="knows no classes"):
        filters(classifier=None, confidence=0.5)
