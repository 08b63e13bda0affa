"""Did you mean; and old names, answered in one sentence with the new one."""

import pytest

from lmsd.cli.config.suggest import nearest, renamed

ROWS = {
    "data.max_bad": "rollback.max_bad",
    "objective.*.clamp": "objective.policy.bound; codec, a number or null",
    "optim.generator": "optim.players.generator",
    "sampler=few_step": "sampler=ancestral",
}


def test_near_names_come_first_and_far_ones_never() -> None:
    names = ["optim.generator.lr", "optim.discriminator.lr", "images", "seed"]
    assert nearest("imags", names) == "; did you mean images?"
    assert nearest("lr", names) == "; did you mean optim.generator.lr, optim.discriminator.lr?"
    assert nearest("model.lr", names).startswith("; did you mean optim.")
    assert nearest("qqqq", names) == ""


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("data.max_bad", 1, "data.max_bad has another name now: write rollback.max_bad=..."),
        ("objective.policy.clamp", 1.0, "write objective.policy.bound=... (codec, a number or null)"),
        (
            "optim.generator.lr",
            1,
            "has another name now: write optim.players.generator.lr=",
        ),
        ("sampler", "few_step", "sampler=few_step has another name now: write sampler=ancestral"),
    ],
)
def test_an_old_name_is_answered_with_the_new_one(key: str, value: object, said: str) -> None:
    assert said in str(renamed(key, value, rows=ROWS))


def test_other_names_are_nobodys() -> None:
    for key, value in (("data.max", 1), ("sampler", "heun"), ("objective.clamp", 1), ("optim", 1)):
        assert renamed(key, value, rows=ROWS) is None
