"""Pairs of pictures and what people said of them, as `lmsd serve` keeps them, and as shards to train on.

    DIR/pairs/KEY.json   prompt, model, seed, steps, guidance, reads; a, b: PNG in base64
    DIR/votes.jsonl      a pair once: {"pair": KEY, "choice": "a"|"b"|"tie"|"both_bad", "time": seconds}

    KEY.png   the picture that was preferred     KEY.rejected.png   the other one     KEY.txt   the prompt

A prompt's pairs lie in one split, chosen by its hash. Ties, and pairs of which both are bad, prefer nothing
and are left out.
"""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from lmsd.errors import Count, Number, UserError

if TYPE_CHECKING:  # torch is imported where it is used
    from lmsd.data.shards import Split
    from lmsd.types import Progress

Choice: TypeAlias = Literal["a", "b", "tie", "both_bad"]
Reads: TypeAlias = Literal["text", "label", "nothing"]
JOURNAL, PAIRS = "votes.jsonl", "pairs"
KEY_DIGITS = 24


@dataclass(frozen=True)
class Pair:
    """Two pictures of one prompt, PNG; reads: what the model takes prompts for."""

    prompt: str
    model: str
    seed: int
    steps: int
    guidance: float
    reads: Reads
    a: bytes
    b: bytes

    @property
    def key(self) -> str:
        """The first digits of its sha256."""
        return hashlib.sha256(self.text().encode()).hexdigest()[:KEY_DIGITS]

    @property
    def left(self) -> Literal["a", "b"]:
        """Which picture is shown on the left, by the pair's hash."""
        return "a" if int(self.key[-1], 16) % 2 == 0 else "b"

    def text(self) -> str:
        """The pair as its file has it."""
        pictures = {name: base64.b64encode(vars(self)[name]).decode() for name in ("a", "b")}
        return json.dumps({**asdict(self), **pictures}, sort_keys=True)

    @classmethod
    def of(cls, text: str) -> "Pair":
        """The inverse of `text`. Raises ValueError, KeyError or TypeError for other text."""
        told = json.loads(text)
        pictures = {name: base64.b64decode(told[name], validate=True) for name in ("a", "b")}
        return cls(**{**told, **pictures})


def votes_in(folder: Path) -> dict[str, Choice]:
    """The votes of a journal, by pair; the first one of a pair counts, and a line that was cut off does not.

    Raises UserError for a folder without a journal, and for a line that is no vote.
    """
    journal = folder / JOURNAL
    try:
        lines = journal.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(
            f"{folder} has no {JOURNAL}: name the folder that lmsd serve had as serve.votes="
        ) from error
    found: dict[str, Choice] = {}
    for number, line in enumerate(lines[:-1], 1):  # what follows the last line end was never answered
        try:
            told = json.loads(line)
            found.setdefault(str(told["pair"]), told["choice"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{journal}, line {number}, is no vote: take the line out") from error
    return found


@dataclass(frozen=True)
class VotesOptions:
    """Options of `lmsd data votes`; val, test: parts of the prompts; see the help of `lmsd data`."""

    val: Annotated[float, Number(0, 0.9)] = 0.1
    test: Annotated[float, Number(0, 0.9)] = 0.0
    shard_size: Count = 1_000
    overwrite: bool = False


@dataclass(frozen=True)
class Preferred:
    """A pair of which one picture is preferred."""

    key: str
    pair: Pair
    choice: Literal["a", "b"]

    def members(self) -> dict[str, str | bytes]:
        """As webdataset writes it."""
        pair = self.pair
        won, lost = (pair.a, pair.b) if self.choice == "a" else (pair.b, pair.a)
        told = {name: value for name, value in vars(pair).items() if name not in ("a", "b")}
        found: dict[str, str | bytes] = {"__key__": self.key, "png": won, "rejected.png": lost}
        if pair.reads == "text":
            found["txt"] = pair.prompt.encode()
            found["json"] = json.dumps(told, sort_keys=True).encode()  # whose text would else be captions
        if pair.reads == "label":
            found["cls"] = pair.prompt.encode()
        return found


@dataclass(frozen=True)
class Built:
    """What `build_votes` wrote: pairs by split; undecided: votes that prefer none, by choice."""

    manifest: Path
    counts: Mapping[str, int]
    undecided: Mapping[str, int]


def build_votes(folder: Path, out: Path, options: VotesOptions, progress: "Progress | None" = None) -> Built:
    """Write shards of the pairs that were decided into `out`, with an index and a manifest.

    Raises UserError where nothing was decided, or pictures of a vote are not there.
    """
    from lmsd.data.builders.folders import MANIFEST, fresh_folder
    from lmsd.data.builders.write import write_split
    from lmsd.data.index import build_index
    from lmsd.data.shards import SPLITS

    chosen, dropped = decided(folder)
    if not chosen:
        raise UserError(f"{folder} has no vote for one of two pictures: there is nothing to learn from yet")
    places = {each.key: split_of(each.pair.prompt, options) for each in chosen}
    counts: dict[str, int] = {split: list(places.values()).count(split) for split in SPLITS}
    if not counts["train"]:
        raise UserError("no prompt is left for train: make val= and test= smaller, or collect more votes")
    done, shards = 0, list[Path]()

    def tell() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, len(chosen), "pairs")

    with fresh_folder(out, overwrite=options.overwrite) as work:
        for split in SPLITS:
            members = (each.members() for each in chosen if places[each.key] == split)
            if counts[split]:
                shards += write_split(work, split, members, size=options.shard_size, tell=tell)
        told = _manifest(chosen, counts, shards, dropped)
        (work / MANIFEST).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        build_index(shards)
    return Built(out / MANIFEST, counts, dropped)


def decided(folder: Path) -> tuple[list[Preferred], Counter[str]]:
    """The pairs of which one picture is preferred, by key, and how many votes prefer none, by choice."""
    found, dropped = list[Preferred](), Counter[str]()
    for key, choice in sorted(votes_in(folder).items()):
        if choice != "a" and choice != "b":
            dropped[choice] += 1
            continue
        path = folder / PAIRS / f"{key}.json"
        try:
            found.append(Preferred(key, _plain(Pair.of(path.read_text(encoding="utf-8"))), choice))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}, the pair of a vote, cannot be read: take its vote out") from error
    kinds = {each.pair.reads for each in found}
    if len(kinds) > 1:
        raise UserError(
            f"{folder} has votes on models that read {' and '.join(sorted(kinds))}: collect them in folders "
            "of their own"
        )
    return found, dropped


def _plain(pair: Pair) -> Pair:
    """A pair whose class is written in the digits 0 to 9. Raises ValueError for one that is no number."""
    return replace(pair, prompt=str(int(pair.prompt))) if pair.reads == "label" else pair


def split_of(prompt: str, options: VotesOptions) -> "Split":
    """The split of a prompt, by its hash."""
    u = int(hashlib.sha256(prompt.encode()).hexdigest()[:8], 16) / 2**32
    return "test" if u < options.test else "val" if u < options.test + options.val else "train"


def _manifest(
    chosen: list[Preferred], counts: Mapping[str, int], shards: list[Path], dropped: Counter[str]
) -> dict[str, Any]:
    from lmsd import __version__
    from lmsd.data.decode import probe
    from lmsd.files import sha256_of

    first = chosen[0].pair
    return {
        "version": 1,
        "source": {"name": "votes", "models": dict(Counter(each.pair.model for each in chosen))},
        "image_size": probe(first.a).height,
        "captions": first.reads == "text",
        "counts": counts,
        "shards": {shard.name: {"sha256": sha256_of(shard)} for shard in shards},
        "dropped": {
            "count": sum(dropped.values()),
            "reasons": {f"votes for {choice}": count for choice, count in sorted(dropped.items())},
            "first": dict.fromkeys((f"votes for {choice}" for choice in dropped), ""),
            "pictures": [],
        },
        "notes": [],
        "versions": {"lmsd": __version__},
    }


def unvoted(folder: Path) -> Iterator[str]:
    """Keys of the pairs in a folder, the oldest first."""
    paths = sorted((folder / PAIRS).glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    yield from (path.stem for path in paths)
