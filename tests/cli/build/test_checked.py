"""What a run begins with fits its data: classes have rows, borrowed weights tell what they do not know."""

from pathlib import Path

import pytest
import torch
from tiny_home import TINY, Home, spoken

from lmsd.cli.build import reading
from lmsd.cli.config.compose import load
from lmsd.errors import UserError
from lmsd.models.conditioner import LabelConditioner


class Held:
    """Four samples of classes 0 to 12."""

    def __len__(self) -> int:
        return 4

    def labels(self, rows: range) -> torch.Tensor:
        return torch.tensor([0, 3, 12, 5])[list(rows)]


class Shards:
    def split_set(self, split: str) -> Held:
        return Held()


def test_classes_beyond_the_table_are_refused_at_the_start() -> None:
    reading.check_labels(LabelConditioner(13, 8), Shards(), "train")
    said = r"conditioner.classes=12: the val shards have classes 0 to 12; take conditioner.classes=13"
    with pytest.raises(UserError, match=said):
        reading.check_labels(LabelConditioner(12, 8), Shards(), "val")


@pytest.mark.slow
def test_weights_of_other_captions_say_what_they_do_not_know(home: Home) -> None:
    """The vocabulary is the weights' own, of digits: the shapes' words are new to it."""
    words = [word for word in TINY if not word.startswith("conditioner=")]
    words += [
        "conditioner={dim: 16, heads: 2, vocab: 600, layers: 1, length: 8}",
        "evaluate.n=0",
        "images=32",
    ]
    spoken(["data", "build", "digits", "out=data/digits"])
    shown = ["data.image_size=16", "data.channels=3"]
    spoken(["train", *words, *shown, "data.shards=data/digits", "run_dir=outputs/digits"])
    own = spoken(["train", *words, "data.shards=data/shapes", "run_dir=outputs/alone"])
    assert "new to the weights" not in own
    said = spoken(
        ["train", *words, "data.shards=data/shapes", "init_from=outputs/digits", "run_dir=outputs/lent"]
    )
    (note,) = [line for line in said.splitlines() if "new to the weights" in line]
    assert "words of the captions are new to the weights, in pieces: " in note
    assert "captions are cut at conditioner.length=8" in said
    assert Path("outputs/lent").is_dir()


def test_the_extractor_of_few_images_trains_on_few() -> None:
    """Twenty images: a hundred passes, and not three thousand."""
    from lmsd.features.training import budget

    assert (budget(20), budget(600), budget(10_000), budget(50_000)) == (2_000, 60_000, 60_000, 300_000)


def test_no_condition_is_built_from_any_experiment() -> None:
    for name in ("digits", "shapes", "cifar10"):
        config = load([f"experiment={name}", "conditioner=none"])
        assert set(config.conditioner) == {"_target_"}
