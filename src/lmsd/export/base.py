"""What all formats have in common: what they write, and what a comparison with the model found."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lmsd.sampling.model import Model


@dataclass(frozen=True)
class Written:
    """What a format has written into its folder.

    opens: a node for `lmsd.spec.build` that makes the generator, given `folder` (`lmsd.models.exported`);
    spec: the tree of the generator as it was trained, files named by their places in the folder; needs:
    packages that reading the folder takes; notes: what a reader should know, one sentence each.
    """

    opens: Mapping[str, Any]
    spec: Mapping[str, Any]
    needs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One figure of a comparison and its limit; at_least: the limit is the smallest value allowed."""

    what: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def held(self) -> bool:
        """Whether the value is a number within the limit."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        return f"{self.what} {self.value:.3g} ({'at least' if self.at_least else 'at most'} {self.limit:g})"


@dataclass(frozen=True)
class Parity:
    """How far an exported folder is from its model; setup: on what it was measured, plain data."""

    rows: tuple[Row, ...]
    setup: Mapping[str, Any]

    @property
    def held(self) -> bool:
        """Whether all figures are within their limits."""
        return all(row.held for row in self.rows)

    @property
    def missed(self) -> str:
        """The figures beyond their limits, in words."""
        return "; ".join(str(row) for row in self.rows if not row.held)

    def plain(self) -> dict[str, Any]:
        """For parity.json."""
        rows = [{**vars(row), "held": row.held} for row in self.rows]
        return {"held": self.held, "rows": rows, "setup": dict(self.setup)}


class Format(Protocol):
    """A module of `FORMATS`."""

    Options: type[Any]

    @staticmethod
    def write(model: Model, folder: Path, options: Any) -> Written:
        """Write the files. Raises UserError for a model that the format cannot hold."""
        ...

    @staticmethod
    def check(folder: Path, model: Model) -> Parity:
        """Compare the finished folder with the model that it was written from."""
        ...
