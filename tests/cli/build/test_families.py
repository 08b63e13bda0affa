"""The families of features that score a run: made once, found again, and what the run was tuned on."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from test_extractors import dinov2
from tiny_home import Home, spoken

from lmsd import cli
from lmsd.cli.build.families import families_of, known, tuned_on
from lmsd.data.shardset import ShardSet
from lmsd.errors import UserError
from lmsd.features.random_conv import RandomExtractor

SHARDS = ["data/shapes", "image_size=16", "images=64"]


def test_what_sees_no_label_is_trained_once_said_once_and_found(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert cli.run(["data", "features", *SHARDS, "kind=ssl", "seed=7"]) == 0
    first = capsys.readouterr()
    assert first.out.startswith("lmsd-ssl@")
    assert ": no label seen; " in first.out
    assert first.err.count("lmsd-ssl of these data is trained first, once, and kept in ") == 1
    folder = Path(first.out.rpartition("; ")[2].strip())
    card = json.loads((folder / "lmsd-ssl.json").read_text())
    assert card["recipe"]["target"] == "views"
    assert first.out.startswith(card["name"])
    assert cli.run(["data", "features", *SHARDS, "kind=ssl", "seed=7"]) == 0
    again = capsys.readouterr()
    assert again.out == first.out
    assert "trained first" not in again.err


@pytest.mark.slow
def test_a_record_of_every_family_and_of_dinov2_where_a_folder_is_given(home: Home, tmp_path: Path) -> None:
    dinov2(tmp_path / "net")
    words = ["run=outputs/first", "split=test", "n=32", "seeds=[0]", "steps=1"]
    spoken(["evaluate", *words, f"families=[ssl,random,{tmp_path / 'net'}]"])
    record = json.loads(Path("outputs/first/eval/test/metrics.json").read_text())
    names = [each.partition("@")[0] for each in record["setup"]["families"].split(", ")]
    assert names == ["lmsd-ssl", "random-conv", "dinov2"]
    assert record["setup"]["tuned_on"] == "fd[lmsd-cnn] on val"


def test_an_unknown_family_is_told_in_a_sentence(home: Home) -> None:
    with pytest.raises(UserError, match="there is no family nowhere; take ssl, random"):
        known(["random", "nowhere"])


def test_images_that_random_convolutions_cannot_see_cost_a_note(home: Home, capsys) -> None:
    data, settings = ShardSet("data/shapes", image_size=4), OmegaConf.create({})
    found = families_of(["random"], settings, data, own=RandomExtractor(1))
    assert found is None or not found.beside
    assert "no random-conv: it sees images of 8 pixels or more, not 4" in capsys.readouterr().err


def test_a_family_named_twice_counts_once(home: Home) -> None:
    data, settings = ShardSet("data/shapes", image_size=16), OmegaConf.create({})
    own = RandomExtractor(1)
    found = families_of(["random", "random"], settings, data, own=own)
    assert found is not None
    assert [each.kind for each in found.beside] == ["random-conv"]


def test_rewards_are_what_a_run_was_tuned_on() -> None:
    reward = {"_target_": "lmsd.rewards.ClassifierLogProb"}
    config = {"evaluate": {"extractor": {"kind": "inception"}}, "objective": {"reward": {"of": reward}}}
    assert tuned_on(OmegaConf.create(config)) == "fd[inception] on val and the reward ClassifierLogProb"
