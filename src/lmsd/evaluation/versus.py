"""One run against another: which of their records, at which settings, and what the scores' groups tell apart.

p of a row is its own. `different` is Holm's (1979) step-down test over the m rows at 5 %:

    reject p_(1) ≤ ... ≤ p_(m) in turn while p_(i) ≤ 0.05 / (m - i + 1)

Where no score differs in truth, any is called different with probability 5 % at most, independent or not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from lmsd.evaluation.catalog import BESIDE, kind_of
from lmsd.evaluation.families import verdict_of
from lmsd.evaluation.records import Record
from lmsd.evaluation.scores import score_of
from lmsd.evaluation.verdict import flattering, shown
from lmsd.metrics import compare

LEVEL = 0.05
_SAME = (("split", "splits"), ("data", "data"), ("extractor_sha256", "extractors"))
_SETTINGS = (
    *("sampler", "tau", "steps", "guidance", "interval", "image_guidance", "autoguidance", "adapters"),
    *("ema", "resize", "right_by"),
)
"""What makes two records alike, beside n, the data and the extractor."""
# scores that hang on more than the extractor, and what of the setup names it
_READ_BY = {"right": "right_by", "sw_families": "families", "kinds": "families"}
_TOLD = (
    "sampler",
    "tau",
    "steps",
    "guidance",
    "interval",
    "image_guidance",
    "autoguidance",
    "adapters",
    "nfe",
    "ema",
    "resize",
    "checkpoint",
    "images",
    "right_by",
)
"""What is printed of each side, where its record has it."""


@dataclass(frozen=True)
class ComparisonRow:
    """One score of two runs: both values, p, whether they differ by Holm's test, in words."""

    name: str
    one: str
    other: str
    said: str
    different: bool


@dataclass(frozen=True)
class Versus:
    """The first run against another: what the comparison stands on, each side's settings, notes, the rows.

    claim: what the families of features say of the first run together; None where they share no distance.
    """

    other: str
    basis: str
    settings: tuple[str, ...]
    notes: list[str]
    rows: list[ComparisonRow]
    claim: str | None = None


def versus(one: Sequence[Record], other: Sequence[Record], name: str) -> Versus:
    """Compare two runs by their records of one split, the newest first in both: those of equal settings."""
    a, b = _pair(one, other)
    refused = incomparable(a, b)
    sides = (_told(a), _told(b))
    if refused is not None:
        return Versus(name, f"not comparable: {refused}", sides, [], [])
    apart = "; ".join(_apart(a["setup"], b["setup"], _TOLD))
    notes = [f"the settings differ, and scores with them: {apart}"] if apart else []
    notes += [
        f"{kind} is not compared: it was read by different instruments"
        for kind in _READ_BY
        if kind in a["scores"] and kind in b["scores"] and not _read_alike(a, b, kind)
    ]
    notes += [f"{who}: {note}" for who, each in (("the first", a), (name, b)) for note in flattering(each)]
    paired = "the same prompts, images and noise" if a["seeds"] == b["seeds"] else "the same prompts"
    basis = f"{a['setup']['split']}, n={a['n']}, paired over {paired}"
    return Versus(name, basis, sides, notes, compared(a, b), verdict_of(a, b))


def _pair(one: Sequence[Record], other: Sequence[Record]) -> tuple[Record, Record]:
    """The newest two records that compare, at equal settings before others, of equal seeds before others."""

    def rank(places: tuple[int, int]) -> tuple[bool, bool, bool, int]:
        a, b = one[places[0]], other[places[1]]
        alike = not _apart(a["setup"], b["setup"], _SETTINGS)
        fits = incomparable(a, b) is None
        return fits, fits and alike, fits and a["seeds"] == b["seeds"], -sum(places)

    first, second = max(product(range(len(one)), range(len(other))), key=rank)
    return one[first], other[second]


def incomparable(one: Record, other: Record) -> str | None:
    """Why two records do not compare, or None: both must be of one split, data, n and extractor."""
    a, b = one["setup"], other["setup"]
    for key, words in _SAME:
        if a.get(key) != b.get(key):
            return f"different {words}"
    if one["n"] != other["n"]:
        return f"n={one['n']} and n={other['n']}; evaluate both at one n"
    return None


def compared(one: Record, other: Record) -> list[ComparisonRow]:
    """Every score that two records share; noise is paired where the seeds are equal."""
    found = {}
    for name, score in one["scores"].items():
        kind, match = kind_of(name), other["scores"].get(name, {})
        paired = 1 < len(score.get("parts", ())) == len(match.get("parts", ()))
        if paired and kind.rpartition("_")[2] not in BESIDE and _read_alike(one, other, kind):
            found[name] = compare(score_of(score), score_of(match)).p
    rejected, rows = holm(found), []
    for name, p in found.items():
        values = (each["scores"][name]["value"] for each in (one, other))
        one_value, other_value = map(shown(kind_of(name)), values)
        said = f"{'different' if name in rejected else 'not told apart'} (p = {p:.2g})"
        rows.append(ComparisonRow(name, one_value, other_value, said, name in rejected))
    return rows


def _read_alike(one: Record, other: Record, kind: str) -> bool:
    """Whether two records' scores of a kind were read by the same instruments, in any order."""
    key = _READ_BY.get(kind, "")
    return len({frozenset(str(each["setup"].get(key)).split(", ")) for each in (one, other)}) == 1


def holm(found: Mapping[str, float], *, level: float = LEVEL) -> set[str]:
    """The names whose p Holm's step-down test rejects at a level for all together (module text)."""
    rejected: set[str] = set()
    for place, name in enumerate(sorted(found, key=lambda each: found[each])):
        if not found[name] <= level / (len(found) - place):
            break
        rejected.add(name)
    return rejected


def _apart(a: Mapping[str, Any], b: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    """The settings that differ, with both values."""
    return [
        f"{key} {_plain(a.get(key))} and {_plain(b.get(key))}" for key in keys if a.get(key) != b.get(key)
    ]


def _told(record: Record) -> str:
    """A record's settings in words."""
    setup = record["setup"]
    words = [f"{key}={_plain(setup[key])}" for key in _TOLD if setup.get(key) is not None]
    return ", ".join([*words, f"seeds={','.join(map(str, record['seeds']))}"])


def _plain(value: object) -> str:
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
