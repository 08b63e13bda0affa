"""What lies in a run folder: records of scores in eval/<split>/, lines of metrics.jsonl, when it trained."""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

from lmsd.errors import UserError

Record: TypeAlias = dict[str, Any]

_PARTS = {"scores": dict, "setup": dict, "seeds": list, "n": int}
"""What every record of scores has."""
_PAIRED = re.compile(r"^((?:\w+/)?(?:kid|cmmd))(?=[_[])")


def newest_records(folder: Path) -> dict[str, Record]:
    """The newest record of every split. Raises UserError for a damaged one."""
    return {path.parent.name: read_record(path) for path in sorted(folder.glob("eval/*/metrics.json"))}


def records_by_age(folder: Path, split: str) -> dict[Path, Record]:
    """Every record of a split under its own name, oldest first; of one age, in order of their numbers."""
    paths = [path for path in (folder / "eval" / split).glob("*.json") if path.stem != "metrics"]
    return {path: read_record(path) for path in sorted(paths, key=_age)}


def _age(path: Path) -> tuple[int, int, str]:
    """NAME-2 is younger than NAME, and NAME-10 than NAME-9."""
    number = path.stem.rpartition("-")[2]
    return path.stat().st_mtime_ns, int(number) if number.isdecimal() else 1, path.stem


def read_record(path: Path) -> Record:
    """A record of scores. Raises UserError for a damaged one."""
    content = read_json(path)
    if not all(isinstance(content.get(name), kind) for name, kind in _PARTS.items()):
        raise _damaged(path)
    slices = {name: paired(part) for name, part in content.get("slices", {}).items()}
    return content | {"scores": paired(content["scores"])} | ({"slices": slices} if slices else {})


def paired(scores: Mapping[str, Any]) -> Record:
    """Scores by today's names: what was called kid (cmmd) before there was kid_paired is kid_paired."""
    if any("_paired" in name for name in scores):
        return dict(scores)
    return {_PAIRED.sub(r"\1_paired", name): score for name, score in scores.items()}


def read_json(path: Path) -> Record:
    """The object that a file holds; empty where there is no file. Raises UserError for a damaged one."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise _damaged(path) from None
    if not isinstance(content, dict):
        raise _damaged(path)
    return content


def _damaged(path: Path) -> UserError:
    what, again = (
        ("record of scores", "; lmsd evaluate makes it again") if "eval" in path.parts else ("file", "")
    )
    return UserError(f"{path} is damaged and cannot be read: delete this {what}{again}")


def read_records(path: Path) -> list[Record]:
    """The lines of metrics.jsonl that are whole, in order of images seen."""
    records: list[Record] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the last line of a run that was killed
        if isinstance(record, dict) and isinstance(record.get("images"), int | float):
            records.append(paired(record))
    return sorted(records, key=lambda record: float(record["images"]))


def having(records: Sequence[Record], name: str) -> list[Record]:
    """Those of the records that have a number of this name."""
    return [record for record in records if isinstance(record.get(name), int | float)]


def without_pauses(records: Sequence[Record], sessions: Sequence[float]) -> list[Record]:
    """Lines whose "time" stood still while no session ran; sessions: when each began, unix seconds.

    Of the stretch between two lines with a session's begin in it, what lies after the begin counts.
    """
    begins = sorted(each for each in sessions if isinstance(each, int | float))
    timed = having(records, "time")
    paused, found = 0.0, timed[:1]
    for before, after in pairwise(timed):
        inside = [begin for begin in begins if before["time"] < begin <= after["time"]]
        paused += inside[-1] - before["time"] if inside else 0.0
        found.append(after | {"time": after["time"] - paused})
    return found
