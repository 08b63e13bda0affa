from dataclasses import dataclass

import pytest

from lmsd.flat import flat, nested


@dataclass(frozen=True)
class Inner:
    steps: int = 4
    guidance: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Outer:
    run: str
    inner: Inner = Inner()
    seeds: tuple[int, ...] = (0,)


def test_the_values_of_a_record_in_a_record_stand_under_their_own_names():
    record = Outer(run="last", inner=Inner(steps=8), seeds=(1, 2))
    assert flat(record) == {"run": "last", "steps": 8, "guidance": 1.0, "seeds": (1, 2)}
    assert nested(Outer, flat(record)) == record


def test_what_is_not_given_is_the_default_and_a_stranger_is_not_looked_at():
    assert nested(Outer, {"run": "a", "guidance": 3.0, "other": 1}) == Outer(
        run="a", inner=Inner(guidance=3.0)
    )
    with pytest.raises(TypeError, match="run"):
        nested(Outer, {"steps": 1})
