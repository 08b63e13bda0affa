"""What a sweep tries: fixed words, and axes in Hydra's grammar.

seed=1,2,3        steps=range(1,5)        net=mlp,unet_text            a grid, the product of all
optim.generator.lr=tag(log,interval(1e-5,1e-3))                        proposed by Optuna
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, prod
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep

from lmsd.cli.config.compose import parse_sweep
from lmsd.errors import UserError


@dataclass(frozen=True)
class Axis:
    """One option and its values: choices as they are written, or an interval of numbers."""

    key: str
    choices: tuple[str, ...] = ()
    low: float = 0
    high: float = 0
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether the interval holds whole numbers: int(interval(8,64))."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def values(self) -> Sequence[Any]:
        """Its values, where they can be counted."""
        return self.choices or range(int(self.low), int(self.high) + 1)

    def count(self) -> float:
        """How many values it has; infinity for an interval of numbers that are not whole."""
        return len(self.values) if self.choices or self.whole else inf

    def shown(self) -> str:
        """The axis as a line: optim.generator.lr: 1e-05 to 0.001, by its logarithm."""
        if self.choices:
            return f"{self.key}: {', '.join(self.choices)}"
        whole, log = ", whole numbers" * self.whole, ", by its logarithm" * self.log
        return f"{self.key}: {self.low:g} to {self.high:g}{whole}{log}"


@dataclass(frozen=True)
class Space:
    """The fixed words of all trials, and the axes.

    devices: GPUs of the trial that needs most; None: all that it sees (devices=auto).
    """

    fixed: tuple[str, ...]
    axes: tuple[Axis, ...]
    devices: int | None = field(default=1, repr=False)

    def size(self) -> float:
        """How many combinations there are; infinity where an axis has no end of values."""
        return prod(axis.count() for axis in self.axes)

    def at(self, index: int) -> dict[str, Any]:
        """One of all combinations, the last axis fastest, where they can be counted."""
        values = {}
        for axis in reversed(self.axes):
            index, place = divmod(index, int(axis.count()))
            values[axis.key] = axis.values[place]
        return {axis.key: values[axis.key] for axis in self.axes}

    def grid(self) -> list[dict[str, Any]]:
        """Every combination, the last axis fastest. Raises UserError for an interval, which has no grid."""
        for axis in self.axes:
            if not axis.choices:
                raise UserError(f"{axis.key}=interval(...) has no grid: give values, or sweep.method=tpe")
        return [self.at(index) for index in range(int(self.size()))]

    def words(self, values: Mapping[str, Any]) -> list[str]:
        """The overrides of one trial."""
        return [*self.fixed, *(f"{key}={value}" for key, value in values.items())]


def read(words: Sequence[str]) -> Space:
    """Fixed words and axes; `checks.checked` looks at what they say. Raises UserError."""
    fixed, axes = [], []
    for word in words:
        override = parse_sweep(word)
        _refuse(override, word)
        if override.is_sweep_override():
            axes.append(_axis(override, word))
        else:
            fixed.append(word)
    if not axes:
        lists = [
            f"{w} is one list; several values are {w[:-1].replace('=[', '=')}" for w in fixed if "=[" in w
        ]
        way = [*lists, "give an option several values, e.g. optim.generator.lr=1e-4,3e-4"][0]
        raise UserError(f"nothing varies: {way}")
    named = [str(parse_sweep(word).get_key_element()) for word in fixed] + [axis.key for axis in axes]
    for axis in axes:
        if named.count(axis.key) > 1:
            raise UserError(f"{axis.key}= is given twice: what is swept is given once, with all its values")
    return Space(tuple(fixed), tuple(axes))


def _refuse(override: Override, word: str) -> None:
    """Refuse what a sweep decides itself, and a choice on the test split."""
    key = override.key_or_group
    if key.rsplit(".", 1)[-1] == "split":
        raise UserError(
            f"{word}: a sweep chooses on val, and test stays unseen; score the winner alone: "
            "lmsd evaluate run=WINNER split=test"
        )
    if key in ("run_dir", "resume", "extend", "dry"):
        raise UserError(
            f"{word}: a sweep names the folders of its runs itself; the same command continues it"
        )


def _axis(override: Override, word: str) -> Axis:
    key, value = str(override.get_key_element()), override.value()
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
        if low is None or high is None or not -inf < low < high < inf or ("log" in value.tags and low <= 0):
            raise UserError(f"{word}: an interval goes from low to high, with low above 0 where it is log")
        return Axis(key, low=low, high=high, log="log" in value.tags)
    if isinstance(value, ChoiceSweep | RangeSweep):
        return Axis(key, tuple(dict.fromkeys(str(item) for item in override.sweep_string_iterator())))
    raise UserError(f"{word}: give values, range(...), interval(...) or tag(log,interval(...))")
