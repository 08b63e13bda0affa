"""A build from its source to its shards, by many processes, in parts, and on again after a kill.

    prepare   every picture by itself, in chunks (`chunks`): any process, any machine, in any order
    decide    copies, kin and splits over all of them at once, in one process (`prepare`)
    write     every shard by itself (`write`): any process

What comes out is a function of the plan and the pictures: chunks and shards are cut by number alone, and the
decision sees the same table, in the same order, whoever filled it. So any number of processes and parts, and
a build killed at any time and started again, give the same bytes.
"""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmsd.data.builders.chunks import COUNT, Chunk, digest, listed, prepare_chunk
from lmsd.data.builders.folders import MANIFEST, PART, make, put, refuse_taken
from lmsd.data.builders.options import BuildOptions
from lmsd.data.builders.plan import Plan, Work, plan_from, plan_of
from lmsd.data.builders.pool import Ended, Pool
from lmsd.data.builders.prepare import decide
from lmsd.data.builders.sharding import write_shards
from lmsd.data.builders.source import Dropped, Raw, Source
from lmsd.data.builders.where import Where
from lmsd.data.builders.write import write_manifest
from lmsd.data.index import build_index
from lmsd.data.notes import Note, Notes
from lmsd.errors import UserError
from lmsd.files import write_text

if TYPE_CHECKING:  # torch is imported where it is used
    from lmsd.types import Progress

VERSION = 1
"""Of what a part holds."""
_OTHER = "was prepared by another version of LMSD: join parts by the version that made them"


@dataclass(frozen=True)
class Listing:
    """What a source lists: the number of pictures, a digest of what is known of them, what it leaves out."""

    total: int
    digest: str
    dropped: list[Dropped]
    notes: list[Note]


@dataclass(frozen=True)
class Prepared:
    """All that the shards of a build are made of."""

    plan: Plan
    listing: Listing
    chunks: list[Chunk]

    def digest(self) -> str:
        """sha256 of the listing, the numbers of the chunks and what each was made from."""
        known = hashlib.sha256(f"{self.listing.total} {self.listing.digest}\n".encode())
        for chunk in self.chunks:
            known.update(f"{chunk.number} {chunk.pictures()}\n".encode())
        return known.hexdigest()


@dataclass(frozen=True)
class _Told:
    """What `part.json` in `folder` says: part `number` of `of`, the plan as text and as one table."""

    folder: Path
    number: int
    of: int
    plan: str
    listing: Listing
    flat: dict[str, Any]


def build_source(
    source: Source, out: Path, options: BuildOptions, work: Work, progress: "Progress | None" = None
) -> Path:
    """Build the shards of a source, or prepare one part of it, in `out`; the path of what tells of it."""
    plan, share = plan_of(source, options), work.share
    with (
        work_folder(out, [plan.text(), str(share)], overwrite=options.overwrite) as folder,
        Pool(work.workers) as pool,
    ):
        found = prepare_pictures(source, plan, folder / "chunks", pool=pool, share=share, progress=progress)
        if share is None:
            return finish(found, folder, out, pool=pool, progress=progress)
        told = {"version": VERSION, "part": share, "plan": plan.text(), "listing": asdict(found.listing)}
        write_text(folder / "chunks" / PART, json.dumps(told, indent=1) + "\n")
        put(folder / "chunks", out.absolute())
    return out / PART


def merge_parts(
    parts: Sequence[Path], out: Path, *, workers: int, overwrite: bool, progress: "Progress | None" = None
) -> Path:
    """Join the parts of one build, duplicates and splits decided over all; the path of the manifest.

    UserError when a part is missing, comes twice, or is of another build.
    """
    found = _joined(parts)
    made = [f"{(part / PART).absolute()} {(part / PART).stat().st_mtime_ns}" for part in sorted(parts)]
    with (
        work_folder(out, [found.plan.text(), *made], overwrite=overwrite) as folder,
        Pool(workers) as pool,
    ):
        return finish(found, folder, out, pool=pool, progress=progress)


def prepare_pictures(
    source: Source,
    plan: Plan,
    folder: Path,
    *,
    pool: Pool,
    share: tuple[int, int] | None = None,
    progress: "Progress | None" = None,
) -> Prepared:
    """Prepare the pictures of a source, or its share of them, in `folder`, but for those that are there."""
    if plan.recipe.where:
        Where(plan.recipe.where, plan.recipe.fields)
    folder.mkdir(exist_ok=True)
    mine = chunks_of(source.total, share)
    known, chunks, made, done = hashlib.sha256(), list[Chunk](), 0, 0

    def tasks() -> Iterator[tuple[Any, ...]]:
        nonlocal made
        for number, raws in enumerate(_batches(source)):
            for raw in raws:
                listed(known, raw)
            if number in mine:
                chunks.append(Chunk(folder, number))
                pictures = digest(raws)
                if not chunks[-1].made_from(pictures):
                    made += 1
                    yield chunks[-1], raws, plan.recipe, pictures

    before, all_of_them = 0, min(len(mine) * COUNT, source.total)
    for count in pool.run(prepare_chunk, tasks()):
        done += count
        if progress is not None:
            before = max(before, len(chunks) - made)
            progress(min(done + before * COUNT, all_of_them), all_of_them, "pictures")
    listing = Listing(source.total, known.hexdigest(), source.dropped, source.notes)
    return Prepared(plan, listing, chunks)


def chunks_of(total: int, share: tuple[int, int] | None) -> range:
    """The numbers of the chunks of a build of so many pictures, or of one of its parts."""
    count = -(-total // COUNT)
    part, of = share or (1, 1)
    return range(count * (part - 1) // of, count * part // of)


def finish(
    found: Prepared, folder: Path, out: Path, *, pool: Pool, progress: "Progress | None" = None
) -> Path:
    """From all chunks to the data set at `out`; the path of its manifest."""
    data, notes = folder / "data", Notes(found.listing.notes)
    made_of, digest_now = folder / "data.json", json.dumps(found.digest())
    if not made_of.is_file() or made_of.read_text(encoding="utf-8") != digest_now:
        shutil.rmtree(data, ignore_errors=True)  # shards of a build before are of other pictures
        write_text(made_of, digest_now)
    data.mkdir(exist_ok=True)
    catalog = decide(found.chunks, found.plan, notes, folder=folder, progress=progress)
    shards = write_shards(catalog, found.chunks, found.plan, data, pool=pool, progress=progress)
    write_manifest(found.plan, catalog, notes, shards=shards, listed=found.listing.dropped, folder=data)
    catalog.close()
    build_index([shard.path for shard in shards])
    put(data, out.absolute())
    return out / MANIFEST


@contextmanager
def work_folder(out: Path, plan: list[str], *, overwrite: bool) -> Iterator[Path]:
    """The folder beside `out` that a build is made in; one that a kill has left goes on if plans are equal.

    It is gone when the block succeeds or is refused. UserError when `out` is taken, or another process is at
    it.
    """
    out = out.absolute()
    refuse_taken(out, overwrite=overwrite)
    work = out.with_name(f".{out.name}.building")
    make(work, out)
    with (work / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"another build of {out} is under way: wait for it, or choose another out="
            ) from error
        stored, text = work / "plan.json", json.dumps(plan)
        if not stored.is_file() or stored.read_text(encoding="utf-8") != text:
            for entry in work.iterdir():
                if entry.is_dir():
                    shutil.rmtree(entry)
                elif entry.name != "lock":
                    entry.unlink()
            write_text(stored, text)
        for leftover in work.glob("*/*.tmp.*"):  # half written when a process was killed
            leftover.unlink()
        try:
            yield work
        except Ended:
            raise
        except UserError:
            shutil.rmtree(work)
            raise
        shutil.rmtree(work)


def _batches(source: Source) -> Iterator[list[Raw]]:
    raws = iter(source.samples)
    while batch := list(islice(raws, COUNT)):
        yield batch


def _joined(parts: Sequence[Path]) -> Prepared:
    """All chunks of the parts of one build."""
    known: dict[int, _Told] = {}
    for part in parts:
        told = _told(part)
        if told.number in known:
            raise UserError(
                f"{known[told.number].folder} and {part} are both part {told.number}: name each part once"
            )
        known[told.number] = told
    first = next(iter(known.values()))
    for other in known.values():
        if other.of != first.of:
            raise UserError(
                f"{other.folder} is one of {other.of} parts, and {first.folder} one of {first.of}"
            )
        if other.plan != first.plan:
            raise UserError(
                f"{other.folder} and {first.folder} are of different builds: {_apart(first.flat, other.flat)}"
            )
        if other.listing.digest != first.listing.digest:
            raise UserError(
                f"{other.folder} and {first.folder} saw different pictures: build all parts from the same"
            )
    of = first.of
    missing = [number for number in range(1, of + 1) if number not in known]
    if missing:
        raise UserError(f"part {missing[0]} of {of} is missing: build it by part={missing[0]}/{of}")
    chunks = [
        Chunk(known[number].folder, chunk)
        for number in range(1, of + 1)
        for chunk in chunks_of(first.listing.total, (number, of))
    ]
    for chunk in chunks:
        if not chunk.file("rows").is_file():
            raise UserError(f"{chunk.folder} lacks {chunk.file('rows').name}: copy the whole part again")
    try:
        return Prepared(plan_from(first.plan), first.listing, chunks)
    except (KeyError, TypeError) as error:
        raise UserError(f"{first.folder} {_OTHER}") from error


def _told(part: Path) -> _Told:
    """What a part tells of itself. UserError for a file that is absent, damaged or of another kind."""
    try:
        told = json.loads((part / PART).read_text(encoding="utf-8"))
        number, of = map(int, told["part"])
        if not 1 <= number <= of:
            raise ValueError(number)
        listing = told["listing"]
        found = Listing(
            int(listing["total"]),
            str(listing["digest"]),
            [Dropped(**entry) for entry in listing["dropped"]],
            [(what, count, name) for what, count, name in listing["notes"]],
        )
        other = told["version"] != VERSION
        read = _Told(part, number, of, told["plan"], found, _flat(json.loads(told["plan"])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{part} is no part of a build (it has no {PART} that can be read): make one by "
            "lmsd data build ... part=1/8"
        ) from error
    if other:
        raise UserError(f"{part} {_OTHER}")
    return read


def _apart(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """The first difference of two plans, in words."""
    name = next(name for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name))
    return f"{name} is {theirs.get(name)} and {ours.get(name)}"


def _flat(plan: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for group in ("source", "recipe", "rules", "options", "versions")
        for name, value in plan[group].items()
    } | {"classes": plan["classes"]}
