"""Who is promoted: chance, slightly worse ones, other families, right prompts, copies; the pointer's file."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lmsd.errors import UserError
from lmsd.evaluation import Scores, pointer
from lmsd.evaluation.measures import measures
from lmsd.evaluation.pointer import Promoted
from lmsd.evaluation.promotion import decide
from lmsd.metrics import prompts_score

ROWS, WIDTH = 400, 4
SETUP = {"split": "val", "data": "d", "extractor_sha256": "e", "right_by": "a@1", "families": "b@2=f"}


def drawn(seed: int) -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(seed))


REAL = drawn(10**6)


def record(own: Tensor, beside: Tensor | None = None, *, right: float = 0.8) -> dict[str, Any]:
    """The record of features in two families, which see the same where the second one's are not given."""
    one, other = (
        None
        if features is None
        else measures([features], REAL, [0] * ROWS, halvings=1, kernel=False).scores["fd"]
        for features in (own, beside)
    )
    assert one is not None
    hits = torch.arange(ROWS)[:, None] % 100 < 100 * right
    found = {"fd[a@1]": one, "fd[b@2]": other or one, "right": prompts_score(hits, share=True)}
    content: dict[str, Any] = json.loads(
        json.dumps(Scores("a@1", ROWS, (0,), found, None, (), SETUP).as_json())
    )
    return content


PAIR = record(drawn(1)), record(drawn(1) + 0.5)


@pytest.mark.slow
def test_an_incumbent_against_itself_with_other_noise_is_promoted_five_times_in_a_hundred_at_most() -> None:
    """100 pairs over one held-out set of a model whose FD is not 0, each with noise of its own."""
    mine = [record(drawn(seed) * 1.2 + 0.3) for seed in range(200)]
    promoted = sum(decide(mine[place], mine[100 + place]).promoted for place in range(100))
    assert promoted <= 5


@pytest.mark.slow
def test_copies_that_are_a_little_worse_are_never_promoted() -> None:
    """FD is that of the incumbent times 1.01, 1.03 and 1.1 (mean over 20 draws), from the same noise."""
    incumbents = [record(drawn(seed) * 1.2 + 0.3) for seed in range(20)]
    base = sum(each["scores"]["fd[a@1]"]["value"] for each in incumbents) / 20
    for worse in (0.01, 0.03, 0.1):
        shift = (0.3**2 + worse * base / WIDTH) ** 0.5  # FD of Gaussians grows by |mean|²
        copies = [record(drawn(seed) * 1.2 + shift) for seed in range(20)]
        mean = sum(each["scores"]["fd[a@1]"]["value"] for each in copies) / 20
        assert mean / base == pytest.approx(1 + worse, abs=0.005)
        assert not any(decide(a, b).promoted for a, b in zip(copies, incumbents, strict=True))


def test_a_better_one_is_promoted() -> None:
    found = decide(record(drawn(1)), record(drawn(1) + 0.5))
    assert found.promoted
    assert found.why.startswith("promoted: better by fd[a@1] ")
    assert [each.name for each in found.differences] == ["fd[a@1]", "fd[b@2]", "right"]
    assert not decide(record(drawn(1) + 0.5), record(drawn(1))).promoted


def test_better_in_one_family_and_worse_in_another_is_not_promoted() -> None:
    found = decide(record(drawn(1), drawn(2) + 0.6), record(drawn(1) + 0.5, drawn(2) + 0.5))
    assert not found.promoted
    assert "but worse by fd[b@2]" in found.why
    slightly = decide(record(drawn(1), drawn(2) + 0.501), record(drawn(1) + 0.5, drawn(2) + 0.5))
    assert slightly.promoted, "by less than 2 % of its value"


def test_fewer_right_prompts_are_in_the_way() -> None:
    worse, same = (decide(record(drawn(1), right=r), record(drawn(1) + 0.5)) for r in (0.6, 0.79))
    assert not worse.promoted
    assert "but worse by right 60.0" in worse.why
    assert same.promoted, "by less than 2 % of 80 %"


def test_copies_of_the_training_set_are_in_the_way() -> None:
    mine, theirs = record(drawn(1)), record(drawn(1) + 0.5)
    assert "copies of the training set were not looked for" in decide(mine, theirs).notes
    mine["scores"]["neighbors"] = {"flagged": False}
    assert decide(mine, theirs).promoted
    mine["scores"]["neighbors"] = {"flagged": True}
    assert "flagged for copies" in decide(mine, theirs).why
    mine["scores"]["neighbors"] = {"flagged": False, "p": None}
    assert not decide(mine, theirs).promoted
    assert "copies cannot be told" in decide(mine, theirs).why
    assert not decide(mine, theirs).promoted


def damaged(content: dict[str, Any], name: str, way: str) -> dict[str, Any]:
    """The record without a score, without its parts, or with what is no number."""
    scores = {key: dict(score) for key, score in content["scores"].items()}
    if way == "missing":
        del scores[name]
    elif way == "no parts":
        del scores[name]["parts"]
    elif way == "value":
        scores[name]["value"] = float("nan")
    else:
        scores[name]["parts"] = [float("nan")] * len(scores[name]["parts"])
    return {**content, "scores": scores}


@pytest.mark.parametrize("side", ["challenger", "incumbent"])
@pytest.mark.parametrize("way", ["missing", "no parts", "value", "parts"])
@pytest.mark.parametrize("name", ["right", "fd[b@2]"])
def test_what_cannot_be_judged_is_in_the_way(name: str, way: str, side: str) -> None:
    mine, theirs = PAIR
    assert decide(mine, theirs).promoted
    sides = {"challenger": mine, "incumbent": theirs}
    sides[side] = damaged(sides[side], name, way)
    found = decide(sides["challenger"], sides["incumbent"])
    assert not found.promoted
    assert f"{name} cannot be judged" in found.why


def test_no_number_of_the_named_score_promotes_nobody() -> None:
    mine, theirs = PAIR
    with pytest.raises(UserError, match="hold no intervals of it over the same rows"):
        decide(damaged(mine, "fd[a@1]", "parts"), theirs)


def test_by_another_score_and_by_one_of_which_more_is_better() -> None:
    mine, theirs = record(drawn(1), right=0.9), record(drawn(1), right=0.6)
    assert decide(mine, theirs, score="right").promoted
    assert not decide(theirs, mine, score="right").promoted
    assert not decide(mine, theirs, score="fd[b@2]").promoted, "the same images are not told apart"
    with pytest.raises(
        UserError, match=r"score=fdd is none to be promoted by: take one of fd\[a@1\], fd\[b@2\], ri"
    ):
        decide(mine, theirs, score="fdd")


@pytest.mark.parametrize(
    ("setup", "said"),
    [
        ({"data": "x"}, "different data"),
        ({"families": "b@2=g"}, "different families"),
        ({"right_by": "checker"}, "different instruments"),
    ],
    ids=["data", "families", "readers"],
)
def test_what_does_not_compare_is_refused(setup: dict[str, str], said: str) -> None:
    mine = record(drawn(1))
    with pytest.raises(UserError, match=said):
        decide(mine, {**mine, "setup": {**mine["setup"], **setup}})
    with pytest.raises(UserError, match="different seeds"):
        decide(mine, {**mine, "seeds": [4]})


def test_the_pointer_comes_back_and_a_damaged_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert pointer.read() == (None, [])
    one, two = (Promoted(f"run-{name}", "step_000000009.ckpt", name * 64) for name in "ab")
    pointer.point(one, [])
    path = pointer.point(two, [one])
    assert json.loads(path.read_text()) == {
        "run": "run-b",
        "checkpoint": "step_000000009.ckpt",
        "sha256": "b" * 64,
        "history": [{"run": "run-a", "checkpoint": "step_000000009.ckpt", "sha256": "a" * 64}],
    }
    assert pointer.read() == (two, [one])
    with pytest.raises(UserError, match="is gone, damaged or another one by now"):
        two.file()
    path.write_text(path.read_text()[:-20])
    with pytest.raises(UserError, match="is damaged and cannot be read"):
        pointer.read()
