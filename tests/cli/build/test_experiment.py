"""Building: what the shards do not hold is asked for; references lead to nothing that may not be built."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from lmsd.cli.build.experiment import instantiate, optimization
from lmsd.cli.build.reading import check_condition
from lmsd.cli.build.roles import check_pairs
from lmsd.cli.config.compose import load
from lmsd.errors import UserError
from lmsd.models.conditioner import Conditioner, LabelConditioner, NullConditioner
from lmsd.process.schedules import Cosine


def holding(*, labels: bool, captions: bool) -> Any:
    index = SimpleNamespace(labels=labels, captions=frozenset({"txt"} if captions else ()))
    return SimpleNamespace(index=lambda split: index, has=lambda split: False)


class Reader(Conditioner):
    reads = "text"


@pytest.mark.parametrize(
    ("conditioner", "labels", "captions", "said"),
    [
        (
            LabelConditioner(3, 4),
            False,
            True,
            r"no class labels \(KEY\.cls\); take conditioner=text for their",
        ),
        (LabelConditioner(3, 4), False, False, "take conditioner=none"),
        (Reader(), True, False, "no captions .* take conditioner=label for their classes"),
        (Reader(), False, False, "take conditioner=none"),
    ],
)
def test_a_conditioner_needs_what_it_reads(
    conditioner: Conditioner, labels: bool, captions: bool, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        check_condition(conditioner, holding(labels=labels, captions=captions))
    check_condition(conditioner, holding(labels=True, captions=True))
    check_condition(NullConditioner(), holding(labels=False, captions=False))


def test_a_node_with_references_becomes_an_object() -> None:
    root = OmegaConf.create(
        {"steps": 12, "schedule": {"_target_": "lmsd.process.schedules.Cosine", "steps": "${steps}"}}
    )
    found = instantiate(root.schedule)
    assert isinstance(found, Cosine)
    assert found.steps == 12


def test_a_reference_to_nothing_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"the configuration does not resolve: .*absent"):
        instantiate(OmegaConf.create({"_target_": "lmsd.process.schedules.Cosine", "steps": "${absent}"}))


@pytest.mark.parametrize(
    "words",
    [
        "${evil}",
        "${oc.create:{_target_: pathlib.Path.touch, self: {_target_: pathlib.Path}}}",
        "${oc.create:${oc.decode:${oc.env:EVIL}}}",
    ],
)
def test_a_reference_leads_to_no_other_target(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = {"_target_": "shutil.copytree", "src": str(tmp_path / "a"), "dst": str(tmp_path / "b")}
    (tmp_path / "a").mkdir()
    monkeypatch.setenv("EVIL", str(evil).replace("'", ""))
    root = OmegaConf.create({"evil": evil, "schedule": {"_target_": "torch.nn.Sequential", "odd": words}})
    with pytest.raises(UserError, match="may not be built"):
        instantiate(root.schedule)
    assert not (tmp_path / "b").exists()


def test_what_a_reference_gives_is_not_read_again() -> None:
    node = {"_target_": "lmsd.process.schedules.Cosine", "_partial_": True, "steps": "\\${evil}"}
    root = OmegaConf.create({"evil": {"_target_": "os.getpid"}, "node": node})
    assert instantiate(root.node).keywords == {"steps": "${evil}"}


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("optim.clip.fake=1", r"optim\.clip names \['fake'\].*'discriminator', 'generator'"),
        ("optim.averages={fake: [100]}", r"optim\.averages names \['fake'\]"),
    ],
)
def test_what_is_said_of_nobody_is_refused(typed: str, said: str) -> None:
    config = load([typed])
    with pytest.raises(UserError, match=said):
        optimization(config, instantiate(config.objective)).check(
            ("discriminator", "generator"), ("discriminator", "generator")
        )


def test_a_reward_beside_pairs_of_the_data_s_own_is_refused() -> None:
    words = ["experiment=digits", "objective=dpo"]
    with pytest.raises(UserError, match="would judge none"):
        check_pairs(load([*words, "data.images=[rejected]"]))
    check_pairs(load([*words, "data.images=[rejected]", "objective.reward=null"]))
    check_pairs(load(words))
