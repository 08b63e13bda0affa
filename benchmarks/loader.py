"""The loader against its two bounds: decoding alone, and plain webdataset with Pillow.

    python benchmarks/loader.py [--shards DIR] [--images 10000] [--rounds 7]

Every round times the three on the same samples, one after the other, so that a busy machine slows all of them:
`decode` is simplejpeg on bytes that lie in memory; `loader` is ShardDataModule's DataLoader (order, reading, crc32,
decoding, captions, float tensors in [-1,1]) without its memory of decoded images; `webdataset` is
WebDataset(...).decode("rgb8"), unshuffled. Ratios are medians over the rounds. Exits with 1 when the loader takes
more than 1.5 x decode at 32x32, or webdataset less than 8 x the loader.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import simplejpeg
import torch
import webdataset
from PIL import Image

from lmsd.data.index import build_index
from lmsd.data.module import ShardDataModule

BATCH = 256
MOST = 1.5
LEAST = 8.0


def make_shards(folder: Path, images: int, size: int) -> Path:
    """JPEGs of smooth random images with captions, 2,500 to a shard."""
    draw = np.random.default_rng(0)
    pattern = str(folder / "train-%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=2500, verbose=0) as writer:
        for number in range(images):
            coarse = Image.fromarray(draw.integers(0, 256, (6, 6, 3)).astype(np.uint8))
            smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
            jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(smooth), quality=90)
            writer.write({"__key__": f"{number:08d}", "jpg": jpeg, "txt": f"smooth image {number}"})
    return folder


def read_jpegs(paths: list[str], count: int) -> list[bytes]:
    """The first images' bytes."""
    index, found = build_index(paths), []
    for number, path in enumerate(paths):
        content = Path(path).read_bytes()
        for start, length, _ in index.shard(number).column("jpg", "jpeg").tolist():
            found.append(content[start : start + length])
            if len(found) == count:
                return found
    return found


def timed(call: Callable[[], None], count: int) -> float:
    """Microseconds of processor time a sample, the only process' own (wall time is the neighbors' too)."""
    start = time.process_time()
    call()
    return (time.process_time() - start) / count * 1e6


def measure(shards: Path, images: int, size: int, rounds: int) -> dict[str, list[float]]:
    """Processor time a sample of the three, round by round."""
    module = ShardDataModule(shards, batch_size=BATCH, image_size=size, memory_gb=0.0)
    index = module.index("train")
    images = min(images, len(index)) // BATCH * BATCH
    jpegs = read_jpegs(list(index.shards), images)
    batches = iter(module.train_dataloader())

    def decode() -> None:
        for jpeg in jpegs:
            simplejpeg.decode_jpeg(jpeg, "RGB")

    def loader() -> None:
        for _ in range(images // BATCH):
            next(batches)

    def plain() -> None:
        data = webdataset.WebDataset(list(index.shards), shardshuffle=False).decode("rgb8")
        for _, _ in zip(range(images), data, strict=False):
            pass

    ways = {"decode": decode, "loader": loader, "webdataset": plain}
    loader()  # opens the shards
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, call in ways.items():
            times[name].append(timed(call, images))
    print(f"n = {images} images of {size}x{size}, {rounds} rounds, {torch.get_num_threads()} thread")
    return times


def report(times: dict[str, list[float]]) -> bool:
    """Print medians and ratios; whether both bounds hold."""
    for name, values in times.items():
        print(f"{name:12s} {median(values):8.1f} us/image   (min {min(values):.1f}, max {max(values):.1f})")
    over = median(a / b for a, b in zip(times["loader"], times["decode"], strict=True))
    gain = median(a / b for a, b in zip(times["webdataset"], times["loader"], strict=True))
    print(f"loader / decode      {over:6.2f}   at most {MOST}")
    print(f"webdataset / loader  {gain:6.2f}   at least {LEAST}")
    return over <= MOST and gain >= LEAST


def main() -> int:
    parser = argparse.ArgumentParser(description="time the loader")
    parser.add_argument("--shards", type=Path, help="folder of shards of JPEGs; made when not given")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        shards = options.shards or make_shards(Path(folder), options.images, options.size)
        return 0 if report(measure(shards, options.images, options.size, options.rounds)) else 1


if __name__ == "__main__":
    sys.exit(main())
