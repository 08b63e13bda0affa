"""Old names: one sentence with the new one, and stored configurations that move by themselves."""

import pytest

from lmsd.cli.config import renamed

ROWS = {
    "data.max_bad": "rollback.max_bad",
    "objective.*.clamp": "objective.policy.bound; codec, a number or null",
    "optim.generator": "optim.players.generator",
    "sampler=few_step": "sampler=ancestral",
}


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
    assert said in str(renamed.renamed(key, value, rows=ROWS))


def test_other_names_are_nobodys() -> None:
    for key, value in (("data.max", 1), ("sampler", "heun"), ("objective.clamp", 1), ("optim", 1)):
        assert renamed.renamed(key, value, rows=ROWS) is None


def test_a_stored_configuration_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renamed, "RENAMED", ROWS)
    monkeypatch.setattr(renamed, "CHANGES", [lambda tree: tree.pop("gone", None)])
    tree = {"data": {"max_bad": 0.1}, "optim": {"generator": {"lr": 1}}, "gone": 3, "sampler": {"a": 1}}
    assert renamed.today(tree) == {
        "data": {},
        "rollback": {"max_bad": 0.1},
        "optim": {"players": {"generator": {"lr": 1}}},
        "sampler": {"a": 1},
    }
    assert renamed.today({"optim": {"decay": "cosine"}}) == {"optim": {"decay": "cosine"}}
