"""Broken and hostile shards: all noticed, no sample lost in silence, no wrong caption, no code, no memory.

python benchmarks/reliability/hostile.py --n 500

kinds    28 shards that are cut, interleaved, oversized, of links, bombs, pickles: refused by name, or read
as if what is hostile were not there; 256 MiB more than before at most
flips    n single bytes of an indexed shard: in an image or a caption noticed when read; elsewhere the
shard as it was read before, or refused when indexed again. Seed 0.
"""

import gzip
import io
import os
import pickle
import random
import resource
import struct
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from harness import codes, count, fork, report
from PIL import Image

from lmsd.data.members import SUFFIX
from lmsd.data.shardset import ShardSet, Streaming
from lmsd.engine.datamodule import ShardDataModule
from lmsd.errors import UserError

MEMORY = 256 << 10  # KiB
Members = list[tuple[str, bytes]]


def jpeg(number: int) -> bytes:
    draw, file = np.random.default_rng(number), io.BytesIO()
    Image.fromarray(draw.integers(0, 256, (16, 16, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


def pair(number: int) -> Members:
    return [(f"{number:03d}.jpg", jpeg(number)), (f"{number:03d}.txt", f"picture {number}".encode())]


GOOD: Members = [member for number in range(4) for member in pair(number)]


def tar(members: Members) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def png_bomb(side: int) -> bytes:
    """A square of one color, thousands of times smaller than its pixels."""
    squeeze = zlib.compressobj(9)
    rows = b"".join(squeeze.compress(b"\0" + b"\x80" * (4 * side)) for _ in range(side)) + squeeze.flush()
    parts = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")]
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


class Payload:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (os.environ["TRAP"],)


def odd(kind: bytes, link: str = "", size: int = 0) -> bytes:
    """A good shard with a member of another type in it."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in GOOD:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        info = tarfile.TarInfo("x.jpg")
        info.type, info.linkname, info.size = kind, link, size
        archive.addfile(info)
    return file.getvalue()


def sparse() -> bytes:
    """Ten kilobytes that say they are four gigabytes."""
    info = tarfile.TarInfo("b.jpg")
    info.size = 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[156:157], header[386:410] = tarfile.GNUTYPE_SPARSE, b"%011o\0%011o\0" % (0, 512)
    header[483:495], header[148:156] = b"%011o\0" % (1 << 32), b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + b"y" * 512 + b"\0" * 10240


def kinds() -> Iterator[tuple[str, bytes, bool]]:
    """Name, bytes of a shard, and whether it must be refused (else its four samples are read)."""
    whole, trap = tar(GOOD), pickle.dumps(Payload())
    yield from ((f"cut at {at}", whole[:at], True) for at in (0, 300, 512, 1000, 2048, len(whole) // 2))
    yield "cut before the end marker", whole[:-10240], True
    yield "bytes after the end", whole + b"x" * 512, True
    yield "compressed", gzip.compress(whole), True
    yield (
        "interleaved",
        tar([*(m for m in GOOD if "jpg" in m[0]), *(m for m in GOOD if "txt" in m[0])]),
        False,
    )
    yield "key twice", tar([*GOOD, *pair(0)]), True
    yield "absolute", tar([*GOOD, ("/etc/x.jpg", jpeg(9)), ("/etc/x.txt", b"x")]), True
    yield "parent", tar([*GOOD, ("../x.jpg", jpeg(9)), ("../x.txt", b"x")]), True
    yield "backslash", tar([*GOOD, ("..\\x.jpg", jpeg(9)), ("..\\x.txt", b"x")]), True
    yield "marker of webdataset's", tar([*GOOD, ("x.__bad__", b"1"), *pair(8)]), True
    yield "no caption", tar([*GOOD, ("x.jpg", jpeg(9))]), True
    yield "no image", tar([*GOOD, ("x.txt", b"x")]), True
    yield "no UTF-8", tar([*GOOD, ("x.jpg", jpeg(9)), ("x.txt", b"\xff\xfe")]), True
    yield "long caption", tar([*GOOD, ("x.jpg", jpeg(9)), ("x.txt", b"x" * 70_000)]), True
    yield "deep JSON", tar([*GOOD, *pair(8), ("008.json", b"[" * 60_000)]), True
    yield "PNG bomb", tar([*GOOD, ("x.png", png_bomb(9_000)), ("x.txt", b"x")]), True
    yield "no picture", tar([*GOOD, ("x.jpg", trap), ("x.txt", b"x")]), True
    yield "sparse", sparse(), True
    yield "symbolic link", odd(tarfile.SYMTYPE, "/etc/passwd"), True
    yield "hard link", odd(tarfile.LNKTYPE, "000.jpg"), True
    yield "device", odd(tarfile.CHRTYPE), True
    yield "gzip bomb", tar([*GOOD[:2], ("000.txt.gz", gzip.compress(b"\0" * (1 << 27))), *GOOD[2:]]), False
    extra = [(f"000.{end}", trap) for end in ("pyd", "pkl", "pickle", "pth", "npy", "npz", "pt", "bin")]
    yield "pickles", tar([*GOOD[:2], *extra, *GOOD[2:]]), False


def module(path: Path) -> ShardDataModule:
    return ShardDataModule(ShardSet(str(path), image_size=16, train=Streaming(memory_gb=0.0)), batch_size=4)


def captions(path: Path) -> list[str]:
    """All four of the first epoch, read for training."""
    return sorted(next(iter(module(path).train_dataloader())).text)


def read(name: str, content: bytes, refused: bool) -> int:
    """In a process of its own: 0 as it must be, else a number for what went wrong."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LMSD_CACHE"] = f"{folder}/cache"
        path = Path(folder) / "train-000000.tar"
        path.write_bytes(content)
        try:
            found = captions(path)
            wrong = 10 if refused else 11 * (found != [f"picture {number}" for number in range(4)])
        except UserError as error:
            wrong = 12 * (not refused or "train-000000.tar" not in str(error))
        if Path(os.environ["TRAP"]).exists():
            wrong = 13
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return wrong or 14 * (more > MEMORY)


WRONG = {
    10: "was read",
    11: "lost or mixed samples",
    12: "not refused by name",
    13: "ran code",
    14: "memory",
}


def shards() -> tuple[int, list[str]]:
    """Every kind, each in its own process; code in one would make the folder TRAP."""
    failures, number = [], 0
    with tempfile.TemporaryDirectory() as place:
        trap = Path(place) / "trap"
        os.environ["TRAP"] = str(trap)
        pickle.loads(pickle.dumps(Payload()))
        trap.rmdir()  # it works
        for name, content, refused in kinds():
            number += 1

            def run(name: str = name, content: bytes = content, refused: bool = refused) -> None:
                sys.exit(read(name, content, refused))

            (code,) = codes([fork(run, Path("/dev/null"))], seconds=120)
            failures += [f"{name}: {WRONG.get(code, f'exit code {code}')}"] if code else []
            if trap.exists():
                trap.rmdir()
    return number, failures


def flips(n: int) -> tuple[int, list[str]]:
    """Single bytes of an indexed shard, one at a time."""
    draw, failures = random.Random(0), []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LMSD_CACHE"] = f"{folder}/cache"
        path = Path(folder) / "train-000000.tar"
        whole = tar(GOOD)
        path.write_bytes(whole)
        expected, times = captions(path), path.stat()
        members = module(path).shards.index("train").shard(0).members
        spans = [(start, start + length) for _, start, length, _ in members.tolist()]
        for at in sorted(draw.sample(range(len(whole) - 10240), n)):
            flipped = bytearray(whole)
            flipped[at] ^= draw.randrange(1, 256)
            path.write_bytes(bytes(flipped))
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a disk does it
            inside = any(start <= at < end for start, end in spans)
            try:
                silent = captions(path) if inside or captions(path) != expected else None
            except UserError:
                silent = None
            if silent is not None:
                failures.append(f"byte {at}: read in silence")
            if not inside:  # found again where the index is made anew
                path.with_name(path.name + SUFFIX).unlink()
                os.utime(path)
                try:
                    if captions(path) != expected:
                        failures.append(f"byte {at}: lost or mixed samples when indexed again")
                except UserError:
                    pass
                path.write_bytes(whole)
                path.with_name(path.name + SUFFIX).unlink(missing_ok=True)
                os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
                captions(path)
    return n, failures


if __name__ == "__main__":
    wanted = count(500)
    report("kinds of shards, not as promised", *shards())
    report("flipped bytes, silent", *flips(wanted))
