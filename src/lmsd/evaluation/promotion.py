"""Whether a run may take the incumbent's place: by paired 95 % intervals over the same prompts and noise.

d is the challenger's score less the incumbent's, turned so that d < 0 is better; [low, high] its interval
over groups of rows that both share (`metrics.intervals`); v the incumbent's value.

    the named score     better: high < 0                  else the incumbent stays
    any other family,   not low ≤ 0.02 |v|: worse, or     then the incumbent stays
    right prompts       one record lacks it, or is no number
    copies              flagged by their test, or no p    then the incumbent stays

An incumbent that challenges itself with fresh noise takes its own place in 1 of 40 cases at most, in one
comparison: k of them, each with other seeds, in k of 40 at most.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmsd.errors import UserError
from lmsd.evaluation.catalog import CATALOG, kind_of
from lmsd.evaluation.families import JUDGE, families_of
from lmsd.evaluation.records import Record
from lmsd.evaluation.scores import score_of
from lmsd.evaluation.verdict import flattering, shown
from lmsd.evaluation.versus import incomparable
from lmsd.metrics import compare

TOLERANCE = 0.02
"""Share of its value by which a score beside the named one may be worse."""


@dataclass(frozen=True)
class Difference:
    """One score of both; low, high: the interval of challenger less incumbent, below 0 where it is better."""

    name: str
    challenger: float
    incumbent: float
    low: float
    high: float

    @property
    def better(self) -> bool:
        """Whether the interval lies on the better side of 0."""
        return self.high < 0.0

    @property
    def worse(self) -> bool:
        """Whether the interval lies beyond the tolerance on the worse side."""
        return not self.low <= TOLERANCE * abs(self.incumbent)

    def __str__(self) -> str:
        show = shown(kind_of(self.name))
        scale = abs(self.incumbent)
        ends = f"{100 * self.low / scale:+.1f} to {100 * self.high / scale:+.1f} % worse" if scale else "of 0"
        return f"{self.name} {show(self.challenger)} against {show(self.incumbent)} ({ends})"


@dataclass(frozen=True)
class Decision:
    """Whether the challenger is promoted, why in one sentence, and what was compared, named score first."""

    promoted: bool
    why: str
    differences: tuple[Difference, ...]
    notes: tuple[str, ...] = ()


def decide(challenger: Record, incumbent: Record, *, score: str = "fd") -> Decision:
    """Judge two records of one split, data, n, extractor and families by the module's rule.

    score: kind[extractor], or a kind in the records' own extractor. Raises UserError for records that do not
    compare and for a score that one lacks or that ranks nothing.
    """
    _require_alike(challenger, incumbent)
    name = named(challenger, score)
    first = difference(challenger, incumbent, name)
    if first is None:
        raise UserError(
            f"score={score}: the two records hold no intervals of it over the same rows: {listed(challenger)}"
        )
    found = {
        other: difference(challenger, incumbent, other)
        for record in (challenger, incumbent)
        for other in _beside(record, name)
    }
    others = [each for each in found.values() if each is not None]
    unknown = [other for other, each in found.items() if each is None]
    worse = [each for each in others if each.worse]
    near = challenger["scores"].get("neighbors")
    notes = [*flattering(challenger), *([] if near else ["copies of the training set were not looked for"])]
    if not first.better:
        said = "it is worse" if first.low > 0.0 else "not told apart"
        why = f"the incumbent stays: {said} by {first}"
    elif worse:
        why = f"the incumbent stays: better by {first}, but worse by {'; '.join(map(str, worse))}"
    elif unknown:
        why = (
            f"the incumbent stays: better by {first}, but {', '.join(unknown)} cannot be judged: the two "
            "records hold no finite intervals of it over the same rows; score both again"
        )
    elif near and near.get("p", 1.0) is None:
        why = (
            f"the incumbent stays: better by {first}, but copies cannot be told: all held-out images lie on "
            "training images; score both on other val data"
        )
    elif near and near.get("flagged"):
        why = f"the incumbent stays: better by {first}, but flagged for copies of the training set"
    else:
        why = f"promoted: better by {first}"
    return Decision(why.startswith("promoted"), why, (first, *others), tuple(notes))


def _require_alike(one: Record, other: Record) -> None:
    refused = incomparable(one, other)
    if refused is None and one["seeds"] != other["seeds"]:
        refused = "different seeds"
    if refused is None and one["setup"].get("right_by") != other["setup"].get("right_by"):
        refused = "prompts read by different instruments"
    if refused is None and _digests(one) != _digests(other):
        refused = "different families of features"
    if refused is not None:
        raise UserError(
            f"challenger and incumbent do not compare: {refused}; score both on the same val data"
        )


def _digests(record: Record) -> set[str]:
    return set(filter(None, str(record["setup"].get("families") or "").split(", ")))


def named(record: Record, score: str) -> str:
    """The full name of a score in a record. Raises UserError for one that it lacks or that ranks nothing."""
    own = f"{score}[{record['extractor']}]"
    name = next((each for each in (score, own) if each in record["scores"]), None)
    if name is None or kind_of(name) not in CATALOG or CATALOG[kind_of(name)].better is None:
        raise UserError(f"score={score} is none to be promoted by: {listed(record)}")
    return name


def listed(record: Record) -> str:
    """The scores that rank, for a message."""
    kinds = (name for name in record["scores"] if (kind := CATALOG.get(kind_of(name))) and kind.better)
    return f"take one of {', '.join(kinds)}"


def difference(challenger: Record, incumbent: Record, name: str) -> Difference | None:
    """One score of both with its paired interval; None without finite numbers of the same groups of rows."""
    one, other = (record["scores"].get(name, {}) for record in (challenger, incumbent))
    if not 1 < len(one.get("parts", ())) == len(other.get("parts", ())):
        return None
    numbers = [each for score in (one, other) for each in (score["value"], *score["parts"])]
    if one.get("method") != other.get("method") or not all(map(_finite, numbers)):
        return None
    if one.get("method") == "log jackknife" and min(numbers) <= 0.0:
        return None
    interval = compare(score_of(one), score_of(other)).difference
    ends = (interval.low, interval.high)
    if one.get("method") == "log jackknife":  # of a quotient: its change is a factor
        ends = (other["value"] * math.expm1(ends[0]), other["value"] * math.expm1(ends[1]))
    low, high = ends if CATALOG[kind_of(name)].better == "min" else (-ends[1], -ends[0])
    return Difference(name, one["value"], other["value"], low, high)


def _finite(number: float | None) -> bool:
    return number is not None and math.isfinite(number)


def _beside(record: Record, name: str) -> list[str]:
    """What judges in every family but the named score's, and right prompts."""
    families = families_of(record)
    found = [_full(record, family, scores) for family, scores in families.items()]
    mine = name.partition("[")[2].rstrip("]")
    return [
        each
        for each in (*found, "right")
        if each is not None
        and each != name
        and each in record["scores"]
        and (each == "right" or each.partition("[")[2].rstrip("]") != mine)
    ]


def _full(record: Record, family: str, scores: Mapping[str, Any]) -> str | None:
    """The full name of the score by which a family judges."""
    kind = next((kind for kind in JUDGE if kind in scores), None)
    return None if kind is None else f"{kind}[{family}]"
