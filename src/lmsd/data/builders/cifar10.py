"""CIFAR-10 (Krizhevsky 2009) from the official binary archive: 60,000 photographs of 32x32 in ten classes.

A record is one byte of label and 3,072 bytes of pixels, channel by channel in rows. Nothing is unpickled.
"""

import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from lmsd.data.builders.source import Defaults, Raw, Source
from lmsd.errors import UserError
from lmsd.files import sha256_of

WORDS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST = "test_batch.bin"
Records: TypeAlias = NDArray[np.uint8]

_RECORD = 1 + 3 * 32 * 32
_LARGEST = 20_000 * _RECORD  # twice an official batch: more is another file under its name
_WHERE = "get cifar-10-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html"


def cifar10_source(path: Path | None) -> Source:
    """Photographs captioned "a photo of a frog", the official test batch as test and a tenth of train as val.

    UserError when the archive is missing, damaged, or the pickled one.
    """
    if path is None:
        raise UserError(f"the source cifar10 needs path=: {_WHERE}")
    if not path.is_file():
        raise UserError(f"{path} is not a file; {_WHERE} and pass it as path=")
    batches = _read(path)
    return Source(
        name="cifar10",
        samples=_samples(batches),
        total=sum(map(len, batches.values())),
        defaults=Defaults(image_size=32, channels=3, similarity=0.99, kinship=0.97, val=0.1, test=0.0),
        classes=list(WORDS),
        details={"archive_sha256": sha256_of(path)},
    )


def _read(path: Path) -> dict[str, Records]:
    """The records [N, 3073] of every batch of the archive, by file name."""
    found: dict[str, Records] = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if "cifar-10-batches-py" in member.name or name == "batches.meta":
                    raise UserError(f"{path} is the pickled version, and nothing here is unpickled; {_WHERE}")
                if name in (*BATCHES, TEST):
                    found[name] = _records(archive, member, path)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} cannot be read as an archive ({said}); {_WHERE} again") from error
    missing = [name for name in (*BATCHES, TEST) if name not in found]
    if missing:
        raise UserError(
            f"{path} has no {missing[0]}, so it is not the binary version, or not all of it; {_WHERE}"
        )
    return found


def _records(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> Records:
    stream = archive.extractfile(member)
    if (
        stream is None
        or member.issparse()
        or member.size > _LARGEST
        or member.size % _RECORD
        or not member.size
    ):
        raise UserError(f"{path}: {member.name} does not hold records of {_RECORD} bytes; {_WHERE} again")
    records = np.frombuffer(stream.read(), np.uint8).reshape(-1, _RECORD)
    if records[:, 0].max() >= len(WORDS):
        raise UserError(
            f"{path}: {member.name} has the label {records[:, 0].max()}, not 0 to 9; {_WHERE} again"
        )
    return records


def _samples(batches: dict[str, Records]) -> Iterator[Raw]:
    for name in (*BATCHES, TEST):
        for index, record in enumerate(batches[name]):
            label = int(record[0])
            article = "an" if WORDS[label][0] in "aeiou" else "a"
            pixels = np.ascontiguousarray(record[1:].reshape(3, 32, 32).transpose(1, 2, 0))
            yield Raw(
                f"{name} {index:05d}",
                pixels,
                f"a photo of {article} {WORDS[label]}",
                label,
                "test" if name == TEST else "train",
            )
