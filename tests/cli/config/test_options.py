"""Options of the small verbs: names, types and choices of a dataclass."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from lmsd.cli.config.options import read
from lmsd.errors import Seed, UserError


@dataclass(frozen=True)
class Some:
    run: str
    n: int | None = 5
    scale: float = 1.0
    flag: bool = False
    seeds: tuple[Seed, ...] = (0,)
    names: tuple[str, ...] = ()
    split: Literal["test", "val"] = "test"
    channels: Literal[1, 3] | None = None
    out: Path | None = None


def test_values_become_the_types_of_the_fields() -> None:
    words = ["run=12", "n=null", "scale=2", "flag=true", "seeds=[1,2]", "names=a b", "split=val", "out=x/y"]
    found = read(Some, [*words, "channels=3"], verb="try")
    assert found == Some("12", None, 2.0, True, (1, 2), ("a b",), "val", 3, Path("x/y"))
    assert isinstance(found.scale, float)
    assert read(Some, ["run=12e4", "n=1e3"], verb="try") == Some("12e4", 1000)


def test_a_single_value_is_a_sequence_of_one() -> None:
    assert read(Some, ["run=a", "seeds=3"], verb="try").seeds == (3,)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["n=3"], "lmsd try needs run=...; options: run, n"),
        (["run=a", "seed=3"], "unknown option 'seed' of lmsd try; did you mean seeds?"),
        (["run=a", "n=x"], "n=x is not a whole number"),
        (["run=a", "n=1.5"], "n=1.5 is not a whole number"),
        (["run=a", "n=true"], "n=true is not a whole number"),
        (["run=a", "scale=x"], "scale=x is not a number"),
        (["run=a", "flag=maybe"], "flag=maybe is not true or false"),
        (["run=a", "seeds=a"], "seeds=a is not a whole number"),
        (["run=a", "seeds=[1,a]"], "seeds=a is not a whole number"),
        (["run=a", "split=tets"], "split=tets is not one of test, val; did you mean test?"),
        (["run=a", "channels=2"], "channels=2 is not one of 1, 3"),
        (["run=a", "n=1,2"], "'n=1,2' gives several values; n takes one"),
        (["run=a", "seeds=1,2"], "write a list as seeds=[1,2]"),
        (["run=a", "--n"], "write option=value"),
        (["run=b,c"], "run takes one; commas within it are quoted: run=\"'b,c'\""),
        (["run=[a]"], "run=[a] is not one value: give run=..."),
        (["run=a", "seeds=[]"], "seeds=[] is empty: give at least one"),
        (["run=a", "seeds=[1,-1]"], "seeds=-1 is not a whole number from 0 to"),
    ],
)
def test_a_mistake_is_one_sentence(words: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        read(Some, words, verb="try")
    assert said in str(error.value)
