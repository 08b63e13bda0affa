"""Objectives as version 2 stored them, under today's names: built, they are what today's commands build."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from torch import Tensor

from lmsd.cli.build.experiment import instantiate
from lmsd.cli.config import older
from lmsd.cli.config.compose import load
from lmsd.cli.config.suggest import renamed

MOVED = {
    "data.max_bad": "rollback.max_bad",
    "objective.*.clamp": "objective.policy.bound; codec, a number or null",
    "optim.generator": "optim.players.generator",
    "sampler=few_step": "sampler=ancestral",
}
"""Moves, and what is none: a choice, a name with a star."""

POLICY = {"_target_": "lmsd.sampling.Policy", "tau": 1.0, "last_std": 0.03, "ode": False}
DRAWN = {"steps": 4, "guidance": 1.0, "interval": None, "clamp": 1.0}
SHARP = {"_target_": "lmsd.rewards.Sharpness"}
GRPO = {
    "_target_": "lmsd.objectives.grpo.GRPO",
    "reward": SHARP,
    "policy": {**POLICY, **DRAWN},
    **{"group": 16, "normalize": "center", "clip": 1.0, "kl": 1.0, "kl_form": "path", "units": "nats"},
    **{"bound": 5.0, "epochs": 1, "parts": 2, "budget": None, "window": None, "stride": 1, "every": 1},
    **{"refresh": None, "patience": 25},
}
NFT = {
    "_target_": "lmsd.objectives.nft.NFT",
    "reward": SHARP,
    "sampler": {"_target_": "lmsd.sampling.FewStep"},
    "times": {"_target_": "lmsd.process.times.Uniform"},
    **DRAWN,
    **{"group": 16, "beta": 1.0, "bound": 5.0, "normalize": "global", "updates": 1, "decay": 0.5},
    **{"ramp": 0.001, "pull": 1e-4, "weighting": "adaptive", "refresh": None, "patience": 25},
}


def built(objective: dict[str, Any]) -> Any:
    tree = {"objective": objective}
    older.objective(tree)
    again = {"objective": dict(tree["objective"])}
    older.objective(again)
    assert again == tree, "today's stays as it is"
    return instantiate(OmegaConf.create(tree["objective"]))


def looks(thing: Any) -> Any:
    """All that an object was told, to compare by."""
    if isinstance(thing, list | tuple):
        return [looks(item) for item in thing]
    if isinstance(thing, partial):
        return thing.func, looks(thing.args), {name: looks(value) for name, value in thing.keywords.items()}
    if isinstance(thing, Tensor):
        return thing.tolist()
    if type(thing).__module__.startswith("lmsd."):
        return type(thing).__name__, {name: looks(value) for name, value in vars(thing).items()}
    return thing


@pytest.mark.skipif("LMSD_TEST_DATA" not in os.environ, reason="needs the stored runs in LMSD_TEST_DATA")
def test_a_stored_game_is_that_of_todays_recipe() -> None:
    stored = Path(os.environ["LMSD_TEST_DATA"]) / "cases" / "run-v2-half" / "config.yaml"
    old: Any = OmegaConf.to_container(OmegaConf.load(stored))
    new = load(["experiment=digits", "objective.game.bound=1.0", "transforms=[]"])
    assert looks(built(old["objective"])) == looks(instantiate(new.objective))


def test_a_stored_policy_gradient_learns_as_it_did() -> None:
    words = ["objective=grpo", "reward@objective.reward=sharpness", "objective.policy.last_std=0.03"]
    words += ["objective.advantages.normalize=center", "objective.reference.weight=1.0"]
    new = load([*words, "objective.update.minibatches_per_epoch=2", "objective.settings.bound=1.0"])
    assert looks(built(GRPO)) == looks(instantiate(new.objective))


def test_a_stored_nft_learns_as_it_did() -> None:
    words = ["objective=nft", "reward@objective.reward=sharpness", "objective.settings.bound=1.0"]
    assert looks(built(NFT)) == looks(instantiate(load(words).objective))


def test_an_nft_of_the_version_before_learns_as_it_did() -> None:
    words = ["objective=nft", "reward@objective.reward=sharpness"]
    new = load([*words, "objective.contrast.beta=0.5", "objective.contrast.updates=2"])
    node: Any = OmegaConf.to_container(new.objective, resolve=True)
    flat = {**node, **node.pop("contrast")}
    flat["_target_"] = "lmsd.objectives.nft.NFT"
    flat.pop("contrast")
    assert looks(built(flat)) == looks(instantiate(new.objective))


def test_an_objective_of_somebody_else_is_not_touched() -> None:
    mine = {"_target_": "mine.Method", "gamma": 3, "kl": 1}
    tree = {"objective": dict(mine)}
    older.objective(tree)
    assert tree == {"objective": mine}


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("objective.gamma", "objective.game.penalty.gamma=..."),
        ("objective.anchor", "objective.game.anchor.kind=..."),
        ("objective.hold_text", "objective.freeze_text=..."),
        ("objective.kl", "objective.reference.weight=..."),
        ("objective.policy.steps", "objective.settings.steps=..."),
        ("objective.updates", "objective.contrast.updates=... (of nft)"),
        ("objective.pull", "objective.reference_weight=... (of nft objective.contrast.reference_weight)"),
        ("objective.clamp", "objective.game.bound=... (of objectives with a reward objective.settings.bound"),
    ],
)
def test_old_names_are_answered(key: str, said: str) -> None:
    assert said in str(renamed(key, 1))


def test_old_recipes_are_answered() -> None:
    assert "recipe=lmsd_digits" in str(renamed("objective", "lmsd_digits"))


def test_a_stored_configuration_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(older, "RENAMED", MOVED)
    monkeypatch.setattr(older, "CHANGES", [lambda tree: tree.pop("gone", None)])
    tree = {"data": {"max_bad": 0.1}, "optim": {"generator": {"lr": 1}}, "gone": 3, "sampler": {"a": 1}}
    assert older.today(tree) == {
        "data": {},
        "rollback": {"max_bad": 0.1},
        "optim": {"players": {"generator": {"lr": 1}}},
        "sampler": {"a": 1},
    }
    assert older.today({"optim": {"decay": "cosine"}}) == {"optim": {"decay": "cosine"}}
