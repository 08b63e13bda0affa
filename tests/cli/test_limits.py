"""Ranges and choices: every rule speaks of an option that exists, takes its default and refuses the rest."""

import copy

import pytest
from omegaconf import DictConfig, OmegaConf

from lmsd.cli.compose import load
from lmsd.cli.limits import RULES, Choice, check_limits
from lmsd.errors import UserError


@pytest.fixture(scope="module")
def defaults() -> DictConfig:
    return load("train", [])


@pytest.mark.parametrize("key", RULES)
def test_a_rule_takes_the_default_and_refuses_a_wrong_value(key: str, defaults: DictConfig) -> None:
    config = copy.deepcopy(defaults)
    assert OmegaConf.select(config, key, default="absent") != "absent"
    check_limits(config)
    OmegaConf.update(config, key, "nonsense" if isinstance(RULES[key], Choice) else [[]], force_add=True)
    with pytest.raises(UserError, match=f"^{key}="):
        check_limits(config)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("batch_size=-4", "batch_size=-4 is not a whole number of at least 1"),
        ("devices=3", "batch_size=64 (global) does not divide by 3 devices x 1 micro-batches"),
        ("micro_batches=0", "micro_batches=0 is not"),
        ("precision=fp32", "is not one of 32-true, bf16-mixed"),
        ("accelerator=gpus", "did you mean gpu?"),
        ("evaluate.interval=[1]", "a list of 2 numbers"),
        ("evaluate.seeds=[0,-1]", "a list of whole numbers of at least 0"),
        ("optim.ema=[a]", "optim.ema=['a'] is not"),
        ("conditioner=clip", "conditioner.path has no value of its own: give conditioner.path="),
    ],
)
def test_a_value_out_of_range_is_named(word: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        check_limits(load("train", [word]))
    assert said in str(error.value)
