"""Shards made for tests."""

import io
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import webdataset
from PIL import Image

from lmsd.data.shardset import ShardSet, Streaming
from lmsd.data.storage import Storage
from lmsd.engine.datamodule import ShardDataModule


def data_module(source: Any, **options: Any) -> ShardDataModule:
    """A DataModule of a shard set: options of either, of its cache and of its train split, by name alone."""
    streamed = {field.name for field in fields(Streaming)}
    train = {name: options.pop(name) for name in list(options) if name in streamed}
    loop = ("batch_size", "micro_batches", "seed", "world", "rank")
    own = {name: options.pop(name) for name in loop if name in options}
    cache = Storage(options.pop("cache_dir", None), options.pop("cache_gb", 20.0))
    shards = ShardSet(source, cache=cache, train=Streaming(**train), **options)
    return ShardDataModule(shards, **own)


def picture(number: int, size: int = 8, channels: int = 3) -> np.ndarray:
    """A smooth image that differs from number to number."""
    draw = np.random.default_rng(number)
    coarse = Image.fromarray(draw.integers(0, 256, (3, 3, 3)).astype(np.uint8)).resize((size, size))
    return np.asarray(coarse if channels == 3 else coarse.convert("L")).reshape(size, size, channels)


def encoded(image: np.ndarray | Image.Image, form: str = "PNG", **options: object) -> bytes:
    """An image's file."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image if image.shape[-1] == 3 else image[..., 0])
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def jpeg(number: int, size: int = 8) -> bytes:
    return simplejpeg.encode_jpeg(np.ascontiguousarray(picture(number, size)), quality=95)


def sample(number: int, size: int = 8) -> dict[str, bytes]:
    """Members of a sample: JPEG, caption, class."""
    return {"jpg": jpeg(number, size), "txt": f"picture {number}".encode(), "cls": str(number % 10).encode()}


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """A tar of plain members, in this order, by Python's tarfile alone."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_shards(folder: Path, sizes: Iterable[int], *, split: str = "train", size: int = 8) -> list[str]:
    """Shards of numbered samples, as many in each as `sizes` says, written by webdataset."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, number = [], 0
    for shard, count in enumerate(sizes):
        path = folder / f"{split}-{shard:06d}.tar"
        with webdataset.TarWriter(str(path)) as writer:
            for _ in range(count):
                writer.write({"__key__": f"{number:06d}", **sample(number, size)})
                number += 1
        paths.append(str(path))
    return paths


def flip_byte(path: Path, at: int) -> None:
    """Damage one byte, keeping the file's times (what a disk does)."""
    import os

    times = path.stat()
    content = bytearray(path.read_bytes())
    content[at] ^= 0x55
    path.write_bytes(bytes(content))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def members_of(path: Path) -> Mapping[str, tuple[int, int]]:
    """Offset and length of each member, by tarfile."""
    with tarfile.open(path) as archive:
        return {info.name: (info.offset_data, info.size) for info in archive}
