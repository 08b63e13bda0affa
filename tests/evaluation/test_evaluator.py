"""Held-out scores: independent of chunks, exact in what they stand on, and not to be flattered."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_set import WORDS, TinySet, blobs

from lmsd.errors import UserError
from lmsd.evaluation import Evaluator
from lmsd.evaluation.evaluator import quantized
from lmsd.evaluation.names import full_name, published
from lmsd.evaluation.overlap import Overlap
from lmsd.evaluation.scores import score_of
from lmsd.features.cnn import train_extractor
from lmsd.metrics import compare, frechet_distance
from lmsd.rng import Rng


@pytest.fixture(scope="module")
def train():
    return TinySet(600, 1)


@pytest.fixture(scope="module")
def held_out():
    return TinySet(300, 2)


@pytest.fixture(scope="module")
def extractor(train, held_out):
    return train_extractor(train, held_out, images=4000, augment="none")


def perfect(batch, rng):
    """Draws from the data's own distribution, each image a function of its position and seed."""
    seeds = rng.integer(0, 2**31, (), "image").tolist()
    return torch.cat([blobs(label[None], seed) for label, seed in zip(batch.label, seeds, strict=True)])


def blind(batch, rng):
    """As `perfect`, for a class that nobody asked for."""
    seeds = rng.integer(0, 2**31, (), "image").tolist()
    other = rng.integer(0, 4, (), "class")
    return torch.cat([blobs(label[None], seed) for label, seed in zip(other, seeds, strict=True)])


def test_a_perfect_model_is_at_the_floor(extractor, held_out, train):
    scores = Evaluator(held_out, extractor, train=train)(perfect, seeds=(0, 1))
    ratio = scores["fd_ratio"]
    assert ratio.low < 1.0 < ratio.high
    assert ratio.value == pytest.approx(1.0, abs=0.15)
    assert scores["right"].value > 0.97
    assert scores.memorization.near.ratio.value == pytest.approx(1.0, abs=0.1)
    assert scores["kid_paired"].low < 0.0 < scores["kid_paired"].high
    assert scores["kid"].high < 0.0, "the usual estimate, where real and generated images share captions"
    assert scores["fd_infinity"].low < 0.3 * scores["fd"].value
    assert "precision" not in scores
    assert scores.notes == ("no precision, recall, density and coverage: n=300 is below 400",)
    assert scores["class_score"].value == pytest.approx(scores["class_score_real"].value, rel=0.05)


def test_distortion_is_seen_beyond_the_interval(extractor, train):
    def noisy(batch, rng):
        return perfect(batch, rng) + 0.6 * rng.normal((1, 8, 8), "noise")

    evaluator = Evaluator(TinySet(400, 2), extractor, halvings=2, train=train)
    good, bad = evaluator(perfect), evaluator(noisy)
    for name in ("precision", "recall", "density", "coverage"):
        assert good[name].value == pytest.approx(good[f"{name}_train"].value, abs=0.12)
    assert bad["fd"].low > 2 * good["fd"].high
    assert bad["fd_ratio"].low > 1.5
    assert bad["kid"].low > good["kid"].high
    assert bad["coverage"].high < good["coverage"].low
    name = f"fd[{extractor.name}]"
    found = compare(bad.scores[name], good.scores[name])
    assert found.different
    assert found.difference.value == pytest.approx(bad["fd"].value - good["fd"].value)
    assert not compare(good.scores[name], evaluator(perfect, seeds=(9,)).scores[name]).different


def test_prompts_that_are_ignored_are_wrong(extractor, held_out):
    scores = Evaluator(held_out, extractor, halvings=2)(blind, seeds=(0, 1, 2))
    assert scores["right"].low < 0.25 < scores["right"].high
    assert scores["right_real"].value == extractor.recipe.accuracy
    assert list(scores.slices) == ["0", "1", "2", "3"]
    right = extractor.right(extractor(held_out.x)[1], held_out.y, None)
    by_class = [right[held_out.y == label] for label in range(4)]
    assert sum(part.n for part in scores.slices.values()) == 300
    assert [part.scores["right_real"].interval.value for part in scores.slices.values()] == pytest.approx(
        [float(right.double().mean()) for right in by_class]
    )
    shares = [part.scores["right"].interval.value * part.n for part in scores.slices.values()]
    assert sum(shares) / 300 == pytest.approx(scores["right"].value)


def test_copies_are_seen_and_shown(extractor, held_out, train, tmp_path):
    """A tenth of the samples from the training set: flagged, and the picture shows each beside its source."""

    def copying(batch, rng):
        images = perfect(batch, rng)
        stolen = rng.uniform((), "steal") < 0.1
        return torch.where(
            stolen[:, None, None, None], train.x[rng.integer(0, len(train), (), "which")], images
        )

    evaluator = Evaluator(held_out, extractor, train=train, halvings=2)
    caught, honest = evaluator(copying, seeds=(0, 1)), evaluator(perfect, seeds=(0, 1))
    assert caught.memorization.flagged
    assert caught.memorization.copies.value == pytest.approx(0.1, abs=0.05)
    assert not honest.memorization.flagged
    assert honest.memorization.near.low.value > 0.8
    assert "COPIES" in str(caught)
    assert "COPIES" not in str(honest)
    number, row, source = caught.memorization.pairs[0]
    batch = evaluator.prompts([row])
    torch.testing.assert_close(copying(batch, Rng((0, 1)[number], batch.position))[0], train.x[source])
    picture = np.asarray(Image.open(evaluator.closest(copying, caught, tmp_path / "closest.png")))
    assert np.array_equal(picture[8:72, 8:72], picture[8:72, 80:144]), "a copy looks like its source"


def test_scores_do_not_depend_on_the_chunk(extractor, held_out, train):
    whole = Evaluator(held_out, extractor, n=200, train=train, chunk=200, halvings=2)(perfect, seeds=(3, 4))
    parts = Evaluator(held_out, extractor, n=200, train=train, chunk=27, halvings=2)(perfect, seeds=(3, 4))
    assert parts.scalars() == pytest.approx(whole.scalars(), rel=1e-4)
    assert parts["right"] == whole["right"]


def test_a_sample_is_a_function_of_seed_and_row(extractor, held_out):
    """The same row gets the same image for any n and chunk; every row comes once, with its own caption."""
    made = {}

    def watched(batch, rng):
        images = perfect(batch, rng)
        for row, text, label, image in zip(
            batch.position.tolist(), batch.text, batch.label, images, strict=True
        ):
            assert text == held_out.captions([row])[0]
            assert label == held_out.y[row]
            made.setdefault((rng.seed, row), []).append(image)
        assert not (batch.x != -1).any(), "the real images are no input"
        return images

    Evaluator(held_out, extractor, n=150, chunk=64, halvings=2)(watched, seeds=(0, 1))
    assert len(made) == 300
    assert all(len(images) == 1 for images in made.values())
    Evaluator(held_out, extractor, n=300, chunk=50, halvings=2)(watched, seeds=(1,))
    twice = [images for images in made.values() if len(images) == 2]
    assert len(twice) == 150
    assert all(torch.equal(*images) for images in twice)
    row = next(iter(made))[1]
    assert not torch.equal(made[0, row][0], made[1, row][0])


def test_fd_is_the_distance_of_the_features(extractor, held_out):
    images = {}

    def kept(batch, rng):
        found = perfect(batch, rng)
        names = [(rng.seed, row) for row in batch.position.tolist()]
        images.update(zip(names, found, strict=True))
        return found

    evaluator = Evaluator(held_out, extractor, n=200, halvings=2)
    scores = evaluator(kept, seeds=(5, 6))
    real = extractor(held_out.x[evaluator.rows])[0]
    by_hand = [
        frechet_distance(extractor(torch.stack([images[seed, row] for row in evaluator.rows]))[0], real)
        for seed in (5, 6)
    ]
    assert scores.scores[f"fd[{extractor.name}]"].by_seed == pytest.approx(by_hand, rel=1e-5)
    assert scores["fd"].value == pytest.approx(sum(by_hand) / 2, rel=1e-5)


def test_the_record_has_everything_that_belongs_to_a_number(extractor, held_out, train, tmp_path):
    evaluator = Evaluator(held_out, extractor, train=train, halvings=2)
    scores = evaluator(perfect, seeds=(0, 1), split="test", ema="0.05", setup={"checkpoint": "step_1.ckpt"})
    record = json.loads(scores.write(tmp_path).read_text())
    assert json.loads((tmp_path / "eval" / "test" / "metrics.json").read_text()) == record
    fd = record["scores"][f"fd[{extractor.name}]"]
    assert fd["low"] < fd["value"] < fd["high"]
    assert fd["level"] == 0.95
    near = record["scores"]["neighbors"]
    for name in ("ratio", "low", "closer", "copies", "c_t"):
        low, high = near["intervals"][name]
        assert low <= near[name] <= high
        assert low < high
    for name in ("fd_matched", "fd_floor", "fd_ratio", "fd_infinity_floor", "fd_infinity_train"):
        assert f"{name}[{extractor.name}]" in record["scores"]
    assert record["n"] == 300
    assert record["seeds"] == [0, 1]
    assert len(fd["by_seed"]) == 2
    assert fd["seed_sd"] == pytest.approx(abs(fd["by_seed"][0] - fd["by_seed"][1]) / 2**0.5)
    assert score_of(fd) == scores.scores[f"fd[{extractor.name}]"]
    setup = record["setup"]
    assert setup["extractor_sha256"] == extractor.sha256
    assert (setup["split"], setup["ema"], setup["data"]) == ("test", "0.05", "tiny 300 2")
    assert setup["checkpoint"] == "step_1.ckpt"
    assert fd["method"] == "jackknife"
    assert setup["reference"] == "300 images of test"
    assert {"right", "right_real", "neighbors"} < set(record["scores"])
    text = str(scores)
    assert "n=300" in text
    assert "seeds 0,1" in text
    assert "fid" not in text.lower()
    assert "fid" not in json.dumps(record).lower()
    assert f"{fd['value']:.3g}" in text


def test_another_record_is_not_written_over(extractor, held_out, tmp_path):
    """The same settings again: the same file. Other numbers under the same name: a file of its own."""
    evaluator = Evaluator(held_out, extractor, halvings=2)
    first = evaluator(perfect, split="test").write(tmp_path)
    assert evaluator(perfect, split="test").write(tmp_path) == first
    kept = first.read_text()
    other = evaluator(blind, split="test").write(tmp_path)
    assert other == first.with_name(f"{first.stem}-2.json")
    assert first.read_text() == kept
    newest = tmp_path / "eval" / "test" / "metrics.json"
    assert newest.read_text() == other.read_text() != kept


def test_bare_names_need_the_reference_weights_and_their_protocol(extractor):
    class Reference:
        reference = True

    assert full_name("fd", "x", published(Reference(), "train", 50_000)) == "fid"
    assert full_name("class_score", "x", published(Reference(), "test", 10_000)) == "class_score[x]"
    assert full_name("fd", "x", published(Reference(), "test", 50_000)) == "fd[x]"
    assert full_name("fd", "x", published(Reference(), "train", 49_999)) == "fd[x]"
    assert full_name("fd", "x", published(extractor, "train", 50_000)) == "fd[x]"
    assert full_name("fd_floor", "x", published(Reference(), "train", 50_000)) == "fd_floor[x]"


def test_images_and_features_can_be_kept(extractor, held_out, tmp_path):
    evaluator = Evaluator(held_out, extractor, n=60, chunk=25)
    evaluator(perfect, seeds=(4,), keep_images=tmp_path / "images", keep_features=tmp_path / "f.safetensors")
    kept = load_file(tmp_path / "f.safetensors")
    assert kept["rows"].tolist() == evaluator.rows
    row = evaluator.rows[30]
    image = torch.from_numpy(np.array(Image.open(tmp_path / "images" / "seed_4" / f"{row:06d}.png")))[
        None, None
    ]
    torch.testing.assert_close(extractor(image)[0][0], kept["seed_4"][30], rtol=1e-4, atol=1e-4)
    assert len(list((tmp_path / "images" / "seed_4").iterdir())) == 60
    assert torch.equal(kept["real"], extractor(held_out.x[evaluator.rows])[0])


def test_a_split_that_was_trained_on_is_labeled(extractor, held_out, train):
    scores = Evaluator(held_out, extractor, halvings=1, shared=Overlap(exact=3, near=9, of=300))(perfect)
    assert "9 of 300 held-out images (3.0 %) are in the training set or nearly so (3 exactly)" in str(scores)
    assert scores.setup["in_training_set"] == 9
    known = Evaluator(train, extractor, halvings=1)(perfect, split="train")
    assert "the model has seen these images" in known.notes[-1]


def test_the_training_set_is_no_held_out_set(extractor, train):
    """The same object, or another of the same hash; training images as such are scored without `train`."""
    for other in (train, TinySet(600, 1)):
        with pytest.raises(UserError, match="held_out and train are one data set"):
            Evaluator(train, extractor, train=other)
    unnamed = TinySet(600, 1)
    unnamed.hash = None
    with pytest.raises(UserError, match="held_out and train are one data set"):
        Evaluator(unnamed, extractor, train=unnamed)
    Evaluator(train, extractor)
    labeled = Evaluator(train, extractor, train=train, halvings=1, shared=Overlap(600, 600, 600))(perfect)
    assert "600 of 600 held-out images (100.0 %) are in the training set" in str(labeled)
    assert "copies: cannot tell" in str(labeled)
    assert "neighbor_ratio" not in labeled.scalars()


def test_what_was_trained_on_is_noted_though_nobody_looked(extractor, train):
    """Without `shared`: by their features."""
    leaking = TinySet(101, 7)
    leaking.x[:6] = train.x[:6]
    found = Evaluator(leaking, extractor, train=train, chunk=25)(perfect)
    assert "6 of 101 held-out images (5.9 %) are in the training set or nearly so" in str(found)
    assert found.setup["in_training_set"] == found.memorization.twins == 6
    assert Evaluator(TinySet(101, 8), extractor)(perfect).setup["in_training_set"] is None, "nobody looked"


def test_mirrored_copies_are_copies_where_training_mirrors(extractor, held_out, train, tmp_path):
    """A model that mirrors what it copies: each source is found, and shown mirrored."""

    def copying(batch, rng):
        stolen = rng.uniform((), "steal") < 0.1
        source = train.x[rng.integer(0, len(train), (), "which")].flip(-1)
        return torch.where(stolen[:, None, None, None], source, perfect(batch, rng))

    evaluator = Evaluator(held_out, extractor, train=train, halvings=1, mirrored=True)
    caught = evaluator(copying)
    assert caught.memorization.flagged
    assert not evaluator(perfect).memorization.flagged
    assert all(600 <= source < 1200 for _, _, source in caught.memorization.pairs)
    _, row, source = caught.memorization.pairs[0]
    batch = evaluator.prompts([row])
    made = copying(batch, Rng(0, batch.position))[0]
    torch.testing.assert_close(made, train.x[source - 600].flip(-1))
    picture = np.asarray(Image.open(evaluator.closest(copying, caught, tmp_path / "closest.png")))
    assert np.array_equal(picture[8:72, 8:72], picture[8:72, 80:144])
    assert "fd_train" in caught, "the floor of training images, as they are"
    plain = Evaluator(held_out, extractor, train=train, halvings=1)(perfect)
    assert caught["fd_train"] == plain["fd_train"]
    few = Evaluator(held_out, extractor, train=TinySet(299, 1), halvings=1)(perfect)
    assert any(
        note.startswith("no floor of training images: 299 training samples are fewer") for note in few.notes
    )


def test_scalars_are_floats_for_the_log(extractor, held_out):
    found = Evaluator(held_out, extractor, halvings=2)(perfect).scalars("val/")
    name = f"val/fd[{extractor.name}]"
    assert {name, f"{name}/low", f"{name}/high", "val/right", "val/right/high"} < set(found)
    assert all(type(value) is float for value in found.values())


def test_too_few_samples_give_a_note_and_no_distance(extractor, held_out):
    scores = Evaluator(held_out, extractor, n=100)(perfect)
    assert "fd" not in scores
    assert scores.notes[0].startswith(
        "no fd: n=100 is below 128, twice the number of features; take a larger"
    )
    assert "kid" in scores
    assert scores["right"].value > 0.9
    assert scores.notes[0] in str(scores)
    fewer = Evaluator(held_out, extractor, n=60)(perfect)
    assert "kid" not in fewer
    assert "label-matched pairs, and intervals need 40; take a larger n" in fewer.notes[0]


def test_an_exact_checker_takes_the_place_of_the_extractor(extractor, held_out):
    asked = []

    def checker(images, captions):
        asked.extend(captions)
        return [caption.endswith("top") for caption in captions]

    scores = Evaluator(held_out, extractor, checker=checker, halvings=2)(perfect)
    share = (held_out.y == 2).double().mean().item()
    assert scores["right"].value == pytest.approx(share)
    assert scores["right_real"].value == pytest.approx(share)
    assert scores.setup["right_by"] == "checker"
    assert len(asked) == 600, "generated and real"


class Pixels:
    """What a CLIP extractor is to an evaluation; its features are eight means of pixels."""

    kind, name, sha256, exclusive = "clip", "clip@ab12", "ab12" * 16, False
    resize, reference = None, False

    def __call__(self, images):
        features = images.mean(dim=2).flatten(1)
        return features, features[:, :0]

    def right(self, logits, labels, captions):
        return None

    def cut(self, captions):
        return sum(len(each) > 16 for each in captions)

    def texts(self, captions):
        return torch.nn.functional.one_hot(torch.tensor([len(each) for each in captions]) % 8, 8).float()


@pytest.mark.parametrize("captions", [True, False])
def test_clip_gives_cmmd_with_its_floors_and_alignment_where_there_are_captions(captions):
    split, train = TinySet(120, 2, captions=captions), TinySet(200, 1, captions=captions)
    scores = Evaluator(split, Pixels(), train=train, halvings=1)(perfect)
    assert {"cmmd", "cmmd_floor", "cmmd_train", "kid"} <= {name.partition("[")[0] for name in scores.scores}
    assert ("clip_score_shuffled" in scores) is captions
    assert scores["cmmd_paired"].low < 0.0 < scores["cmmd_paired"].high
    assert "right" not in scores
    assert "cmmd[clip@ab12]" in str(scores)
    said = "120 captions are longer than the context of the captions' extractor clip@ab12, and cut"
    assert any(note.endswith(said) for note in scores.notes) is captions


def test_sets_without_labels_or_captions(extractor):
    words = train_extractor(TinySet(600, 1, labels=False), images=3000, augment="none")

    def left(batch, rng):
        return blobs(torch.zeros(len(batch), dtype=torch.int64), 5)

    split = TinySet(150, 3, labels=False)
    right = Evaluator(split, words, halvings=2)(left)["right"]
    assert right.value == pytest.approx((split.y == 0).double().mean().item(), abs=0.1)
    bare = TinySet(150, 3, labels=False, captions=False)
    scores = Evaluator(bare, extractor, halvings=2)(lambda batch, rng: bare.x[: len(batch)])
    assert "right" not in scores
    assert "fd" in scores


def test_features_of_real_images_are_kept(extractor, tmp_path):
    split = TinySet(200, 4)
    first = Evaluator(split, extractor, cache=tmp_path, halvings=2)(perfect)
    read = split.read
    again = Evaluator(split, extractor, cache=tmp_path, halvings=2)(perfect)
    assert split.read - read == 1, "the second time only one image is read, for its shape"
    assert again.scalars() == first.scalars()
    (kept,) = tmp_path.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole[: len(whole) // 2])
    mended = Evaluator(split, extractor, cache=tmp_path, halvings=2)(perfect)
    assert mended.scalars() == first.scalars()
    assert kept.read_bytes() == whole, "a damaged file is made again"


def test_images_are_compared_on_the_levels_that_files_have():
    x = torch.tensor([-1.2, -1.0, 0.0, 0.0039, 0.5, 1.0, 3.0])
    levels = (quantized(x) + 1) * 127.5
    assert torch.equal(levels.round(), torch.tensor([0.0, 0.0, 128.0, 128.0, 191.0, 255.0, 255.0]))
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)


def test_images_that_are_no_numbers_are_never_scored_as_black_ones(extractor, held_out):
    def broken(batch, rng):
        return torch.full_like(batch.x, float("nan"))

    with pytest.raises(UserError, match="hold NaN"):
        Evaluator(held_out, extractor, n=64)(broken)
    assert quantized(torch.tensor([float("inf"), -7.0])).tolist() == [1.0, -1.0]


def test_bad_options_are_refused(extractor, held_out):
    with pytest.raises(UserError, match="n=301 prompts of a split of 300"):
        Evaluator(held_out, extractor, n=301)
    with pytest.raises(UserError, match=r"seeds=\[1, 1\]"):
        Evaluator(held_out, extractor)(perfect, seeds=(1, 1))


@pytest.mark.parametrize("labels", [True, False])
def test_a_floor_whose_labels_training_has_not_is_none_with_the_reason(extractor, labels):
    """A held-out set of one class, of which training has too few: other classes are no floor."""
    held_out, train = TinySet(600, 2, labels=labels), TinySet(300, 1, labels=labels)
    ones = (held_out.y == 1).nonzero()[:, 0][:120]
    held_out.y, held_out.x = held_out.y[ones], held_out.x[ones]
    there = int((train.y == 1).sum())
    scores = Evaluator(held_out, Pixels(), train=train, halvings=1)(perfect if labels else told)
    assert not any("_train" in name for name in scores.scores)
    name = "1" if labels else "a blob at the right"
    said = (
        f"no floor of training images: 120 held-out samples have '{name}' and only {there} training samples"
    )
    assert any(note.startswith(said) for note in scores.notes), scores.notes
    enough = TinySet(800, 1, labels=labels)
    assert "fd_train" in Evaluator(held_out, Pixels(), train=enough, halvings=1)(perfect if labels else told)


def told(batch, rng):
    """As `perfect`, by the captions."""
    labels = torch.tensor([WORDS.index(text.rpartition(" ")[2]) for text in batch.text])
    seeds = rng.integer(0, 2**31, (), "image").tolist()
    return torch.cat([blobs(label[None], seed) for label, seed in zip(labels, seeds, strict=True)])
