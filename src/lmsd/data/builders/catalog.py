"""All pictures of a build in a table on disk (SQLite), where sorting and joining need little memory.

    pictures   every picture that can be used, by its number in the source
    samples    one of each content and caption, in the order of the source; id − 1 is its row everywhere
    dropped    what is left out, by stage: read, near duplicates, kin
    chosen     what is written: split by split, in the order of keys; id is its place

SQLite's own sorting does the sorting; it spills to disk beyond a few megabytes.
"""

import hashlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lmsd.data.builders.chunks import COUNT, Row
from lmsd.data.builders.source import Dropped
from lmsd.data.shards import SPLITS, Split

Integers = NDArray[np.int64]
Stage = Literal["read", "near", "kin"]
_STAGES: tuple[Stage, ...] = ("read", "near", "kin")
_CACHE = 4_000  # KiB
_TABLES = """
    CREATE TABLE pictures (number INTEGER PRIMARY KEY, name, content, said, caption, label, split, repeats,
                           at, length, place);
    CREATE TABLE samples (id INTEGER PRIMARY KEY, number, name, content, key, said, caption, label, split,
                          repeats, at, length, place, kin INTEGER, gone INTEGER);
    CREATE TABLE dropped (stage, number, name, reason);
    CREATE TABLE put (id INTEGER PRIMARY KEY, split);
    CREATE TABLE chosen (id INTEGER PRIMARY KEY, name, content, key, caption, label, split, repeats, number,
                         at, length);
"""


class Sample(NamedTuple):
    """A prepared picture: its content hash, its caption and class, and where its encoded bytes lie.

    key: of its own; the content hash, but for a copy that is kept for its other caption. number: in the
    source, whose chunk holds the bytes.
    """

    name: str
    content: str
    key: str
    caption: str | None
    label: int | None
    split: Split | None
    repeats: int
    number: int
    at: int
    length: int


SAMPLE = ", ".join(Sample._fields)
RANK: dict[Split | None, int] = {"test": 0, "val": 1, "train": 2, None: 3}
"""Which of the splits that a source fixes goes first."""


class Catalog:
    """The tables of one build at `path`, made anew unless `read_only`."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        if not read_only:
            path.unlink(missing_ok=True)
        self.path = path
        self._base = sqlite3.connect(f"{path.absolute().as_uri()}{'?mode=ro' if read_only else ''}", uri=True)
        for pragma in (f"cache_size=-{_CACHE}", "temp_store=FILE", "journal_mode=OFF", "synchronous=OFF"):
            self._base.execute(f"PRAGMA {pragma}")
        if not read_only:
            self._base.executescript(_TABLES)

    def close(self) -> None:
        """Let go of the file."""
        self._base.close()

    def add(self, number: int, rows: Iterable[Row], *, worded: bool) -> None:
        """Take a chunk's pictures, the first of which has this number; worded: captions tell copies apart."""
        used, left, place = [], [], 0
        for each, row in enumerate(rows, number):
            if row.why:
                left.append((0, each, row.name, row.why))
                continue
            said = words(row.caption, row.label) if worded else ""
            known = (each, row.name, row.content, said, row.caption, row.label, row.split, row.repeats)
            used.append((*known, row.at, row.length, number // COUNT * COUNT + place))
            place += 1
        self._base.executemany(f"INSERT INTO pictures VALUES ({', '.join('?' * 11)})", used)
        self._base.executemany("INSERT INTO dropped VALUES (?, ?, ?, ?)", left)

    def drop_copies(self) -> None:
        """Of pictures with one content and caption keep the first, under the name whose split ranks first."""
        columns = "number, name, content, key, said, caption, label, split, repeats, at, length, place"
        self._base.execute(f"CREATE TEMP TABLE kept ({columns})")
        found = self._base.execute(
            "SELECT content, said, number, name, caption, label, split, repeats, at, length, place "
            "FROM pictures ORDER BY content, said, number"
        )
        for content, rows in groupby(found, itemgetter(0)):
            self._base.executemany(
                f"INSERT INTO kept VALUES ({', '.join('?' * 12)})", self._of_one_content(content, rows)
            )
        self._base.execute(
            f"INSERT INTO samples (id, {columns}) SELECT NULL, {columns} FROM kept ORDER BY number"
        )
        self._base.execute("DROP TABLE kept")
        self._base.execute("DROP TABLE pictures")
        self._base.execute(
            "CREATE TEMP TABLE twins AS SELECT content, min(id) AS first FROM samples "
            "GROUP BY content HAVING count(*) > 1"
        )

    def _of_one_content(self, content: str, rows: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
        firsts = []
        for said, copies in groupby(rows, itemgetter(1)):
            (_, _, number, name, caption, label, split, *rest), *others = copies
            for _, _, again, other, text, kind, fixed, *_ in others:
                mine, new = (name, caption, label), (other, text, kind)
                if RANK[fixed] < RANK[split]:
                    (name, caption, label), split, new = new, fixed, mine
                self.drop("read", again, new[0], twin("exact", new, (name, caption, label)))
            firsts.append((number, said, name, caption, label, split, *rest))
        firsts.sort(key=itemgetter(0))
        for place, (number, said, name, *rest) in enumerate(firsts):
            key = content if place == 0 else hashlib.sha256(f"{content} {said}".encode()).hexdigest()
            yield number, name, content, key, said, *rest

    def drop(self, stage: Stage, number: int, name: str, reason: str) -> None:
        """Leave a picture out, by its number among what the stage looks at."""
        row = (_STAGES.index(stage), number, name, reason)
        self._base.execute("INSERT INTO dropped VALUES (?, ?, ?, ?)", row)

    def __len__(self) -> int:
        """The number of samples."""
        return int(self._base.execute("SELECT count(*) FROM samples").fetchone()[0])

    def places(self) -> Integers:
        """Where each sample's signature lies: chunk times `COUNT`, and its number in the chunk."""
        found = self._base.execute("SELECT place FROM samples ORDER BY id")
        return np.fromiter((place for (place,) in found), np.int64)

    def ranks(self) -> NDArray[np.int8]:
        """`RANK` of the split that the source fixes, of each sample."""
        found = self._base.execute("SELECT split FROM samples ORDER BY id")
        return np.fromiter((RANK[split] for (split,) in found), np.int8)

    def named(self, sample: int) -> tuple[str, str | None, int | None]:
        """Name, caption and class of a sample."""
        found = self._base.execute("SELECT name, caption, label FROM samples WHERE id = ?", (sample + 1,))
        name, caption, label = found.fetchone()
        return name, caption, label

    def copied(self, sample: int) -> bool:
        """Whether a sample is a copy of another, kept for its other caption."""
        found = self._base.execute("SELECT key <> content FROM samples WHERE id = ?", (sample + 1,))
        return bool(found.fetchone()[0])

    def relate(self, groups: Integers, gone: Iterable[int]) -> None:
        """Store who belongs together (flat pictures are near none, but for their copies), and who goes."""
        apart = (
            (int(groups[each]) + 1, each + 1) for each in np.flatnonzero(groups != np.arange(len(groups)))
        )
        self._base.execute("UPDATE samples SET kin = id")
        self._base.executemany("UPDATE samples SET kin = ? WHERE id = ?", ((g, int(e)) for g, e in apart))
        self._base.execute(
            "UPDATE samples SET kin = (SELECT kin FROM samples AS s WHERE s.id = first) FROM twins "
            "WHERE twins.content = samples.content"
        )
        self._base.executemany("UPDATE samples SET gone = 1 WHERE id = ?", ((each + 1,) for each in gone))

    def kept_copies(self) -> tuple[int, str]:
        """How many copies are kept for their other caption, and the name of the first."""
        condition = "FROM samples WHERE gone IS NULL AND key <> content"
        count = self._base.execute(f"SELECT count(*) {condition}").fetchone()[0]
        first = self._base.execute(f"SELECT name {condition} ORDER BY id LIMIT 1").fetchone()
        return count, first[0] if first else ""

    def split(self, place: Callable[[str, Split | None], Split]) -> None:
        """Give each sample the split of its kin, and fill `chosen`; those fixed elsewhere are dropped.

        place: (the least content hash of the kin, the split that is fixed among them) → their split.
        """
        ranks = "CASE split WHEN 'test' THEN 0 WHEN 'val' THEN 1 WHEN 'train' THEN 2 ELSE 3 END"
        self._base.execute(
            f"CREATE TEMP TABLE groups AS SELECT kin AS name, min(content) AS least, min({ranks}) AS first "
            "FROM samples WHERE gone IS NULL GROUP BY kin"
        )
        self._base.execute("CREATE UNIQUE INDEX temp.by_name ON groups (name)")
        found = self._base.execute(
            "SELECT id, samples.name, split, least, first FROM samples JOIN groups ON groups.name = kin "
            "WHERE gone IS NULL ORDER BY id"
        )
        splits = list(RANK)
        for number, name, own, least, first in found:
            if own is not None and own != splits[first]:
                self.drop("kin", number, name, f"kin of a {splits[first]} picture")
                continue
            split = SPLITS.index(place(least, splits[first]))
            self._base.execute("INSERT INTO put VALUES (?, ?)", (number, split))
        self._base.execute(
            f"INSERT INTO chosen (id, {SAMPLE}) SELECT NULL, {SAMPLE.replace('split', 'put.split')} FROM put "
            "JOIN samples ON samples.id = put.id "
            f"ORDER BY put.split, CASE put.split WHEN {SPLITS.index('train')} THEN repeats ELSE 1 END, key"
        )
        self._base.commit()

    def chosen(self, first: int = 0, end: int = 1 << 60) -> Iterator[Sample]:
        """What is written, in its order, from one place on to another."""
        found = self._base.execute(
            f"SELECT {SAMPLE} FROM chosen WHERE id > ? AND id <= ? ORDER BY id", (first, end)
        )
        return (Sample(*row)._replace(split=SPLITS[row[5]]) for row in found)

    def runs(self) -> list[tuple[Split, int, int]]:
        """(split, repeats, count) of what is written, in its order; only train repeats."""
        times = f"CASE split WHEN {SPLITS.index('train')} THEN repeats ELSE 1 END"
        found = self._base.execute(f"SELECT split, {times}, count(*) FROM chosen GROUP BY 1, 2 ORDER BY 1, 2")
        return [(SPLITS[split], repeats, count) for split, repeats, count in found]

    def captioned(self) -> bool:
        """Whether anything that is written has a caption."""
        found = self._base.execute("SELECT 1 FROM chosen WHERE caption IS NOT NULL LIMIT 1")
        return found.fetchone() is not None

    def dropped(self) -> Iterator[Dropped]:
        """What is left out, in the order in which it was decided."""
        found = self._base.execute("SELECT name, reason FROM dropped ORDER BY stage, number, rowid")
        return (Dropped(name, reason) for name, reason in found)


def words(caption: str | None, label: int | None) -> str:
    """What a picture is labeled with: its caption, or else its class."""
    return caption or str(label)


Known: TypeAlias = tuple[str, str | None, int | None]
"""Name, caption and class."""


def twin(kind: str, gone: Known, kept: Known) -> str:
    """The reason why one of two pictures is dropped."""
    note = "" if words(*gone[1:]) == words(*kept[1:]) else " with another caption"
    return f"{kind} duplicate of {kept[0]}{note}"
