"""The loader against its two bounds: decoding alone, and plain webdataset with Pillow.

    python benchmarks/loader.py [--shards DIR] [--images 10000]

Every round times the three on 512 images, one after the other, so that a busy machine slows all of them:
`decode` is simplejpeg on bytes that lie in memory; `loader` is ShardDataModule's DataLoader (order, reading,
crc32, decoding, captions, float tensors in [-1,1]) without its memory of decoded images; `webdataset` is
WebDataset(...).decode("rgb8"), unshuffled. Times are this process's own processor time; ratios are medians
over the rounds. Exits with 1 when, at 32x32, the loader takes more than 1.5 x decode, or webdataset less than
8 x the loader.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from statistics import median, quantiles

import numpy as np
import simplejpeg
import torch
import webdataset
from PIL import Image

from lmsd.data.index import build_index
from lmsd.data.shardset import ShardSet, Streaming
from lmsd.engine.datamodule import ShardDataModule

BATCH = 512
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


def measure(shards: Path, images: int, size: int) -> dict[str, list[float]]:
    """Microseconds of processor time an image of the three, batch by batch."""
    module = ShardDataModule(
        ShardSet(shards, image_size=size, train=Streaming(memory_gb=0.0)), batch_size=BATCH
    )
    index = module.shards.index("train")
    rounds = min(images, len(index)) // BATCH
    jpegs = read_jpegs(list(index.shards), rounds * BATCH)
    shuffled = (jpegs[k] for k in np.random.default_rng(0).permutation(len(jpegs)))
    batches = iter(module.train_dataloader())
    samples = iter(webdataset.WebDataset(list(index.shards), shardshuffle=False).decode("rgb8"))

    def decode() -> None:
        for jpeg in islice(shuffled, BATCH):
            simplejpeg.decode_jpeg(jpeg, "RGB")

    def plain() -> None:
        for _ in islice(samples, BATCH):
            pass

    ways: dict[str, Callable[[], object]] = {
        "decode": decode,
        "loader": lambda: next(batches),
        "webdataset": plain,
    }
    next(batches)  # opens the shards
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, call in ways.items():
            start = time.process_time()
            call()
            times[name].append((time.process_time() - start) / BATCH * 1e6)
    print(f"n = {rounds * BATCH} images of {size}x{size}, {rounds} rounds of {BATCH}, one thread")
    return times


def report(times: dict[str, list[float]]) -> bool:
    """Print medians and ratios; whether both bounds hold."""
    for name, values in times.items():
        low, _, high = quantiles(values, n=4)
        print(f"{name:12s} {median(values):8.1f} us/image   (quartiles {low:.1f} to {high:.1f})")
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
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        shards = options.shards or make_shards(Path(folder), options.images, options.size)
        return 0 if report(measure(shards, options.images, options.size)) else 1


if __name__ == "__main__":
    sys.exit(main())
