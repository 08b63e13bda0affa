"""Autoencoders side by side on held-out images, and what a cache of latents saves.

    python benchmarks/latents.py pca SHARDS [size=32] [numbers=256]     the best linear code of its size
    python benchmarks/latents.py taef2 SHARDS path=WEIGHTS size=64      the pretrained tiny autoencoder
    python benchmarks/latents.py own SHARDS path=RUN [size=32]          a run of objective=autoencoder
    python benchmarks/latents.py cache SHARDS folder=DIR                images/s of the stream: cache, memory

PSNR in dB and SSIM are means over images of the test split (n, with the standard error of PSNR); rFD in two
families that trained none of the codecs: random convolutions, and lmsd-ssl of these images where it is kept.
Rows go into results/latents.json.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from lmsd.data.latents import Latents, encode_shards
from lmsd.data.shardset import ShardSet, Streaming
from lmsd.features.random_conv import RandomExtractor
from lmsd.metrics import frechet_distance
from lmsd.models.autoencoder import TAEF2
from lmsd.models.own import TrainedAutoencoder

RESULTS = Path(__file__).parent / "results" / "latents.json"
Codec = Callable[[Tensor], Tensor]
"""Images → what is given back."""


def rows(data: ShardSet, split: str, n: int) -> Tensor:
    held = data.split_set(split)  # type: ignore[arg-type]
    count = min(n, len(held))
    return held.images(torch.randperm(len(held), generator=torch.Generator().manual_seed(0))[:count])


@torch.no_grad()
def row(name: str, back: Codec, x: Tensor, numbers: int) -> dict[str, Any]:
    made = torch.cat([back(part).clamp(-1, 1) for part in x.split(50)])
    psnr = -10 * ((made - x) / 2).square().flatten(1).mean(1).log10()
    judge = RandomExtractor(x.shape[1])
    features = [judge(images)[0] for images in (made, x)]
    found = {
        "numbers": numbers,
        "n": len(x),
        "psnr": float(psnr.mean()),
        "psnr_error": float(psnr.std() / len(x) ** 0.5),
        "ssim": float(structural_similarity_index_measure(made, x, data_range=(-1.0, 1.0))),
        f"rfd[{judge.name}]": float(frechet_distance(*features)),
    }
    content = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    content[name] = found
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    print(name, json.dumps(found))
    return found


def pca(
    shards: str, *, size: str = "32", numbers: str = "256", train: str = "20000", n: str = "2000"
) -> None:
    data = ShardSet(shards, image_size=int(size))
    x = rows(data, "train", int(train)).flatten(1)
    mean = x.mean(0)
    values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    basis = vectors[:, values.argsort(descending=True)[: int(numbers)]]
    shown = rows(data, "test", int(n))

    def back(images: Tensor) -> Tensor:
        return ((images.flatten(1) - mean) @ basis @ basis.T + mean).view_as(images)

    row(f"{Path(shards).name} {size}: PCA", back, shown, int(numbers))


def taef2(shards: str, *, path: str, size: str = "64", n: str = "300") -> None:
    codec, x = TAEF2(path), rows(ShardSet(shards, image_size=int(size)), "test", int(n))
    numbers = int(np.prod(codec.shape_of((3, int(size), int(size)))))
    row(f"{Path(shards).name} {size}: taef2", lambda images: codec.decode(codec.encode(images)), x, numbers)


def own(shards: str, *, path: str, size: str = "32", n: str = "2000", name: str = "own") -> None:
    codec, x = TrainedAutoencoder(path), rows(ShardSet(shards, image_size=int(size)), "test", int(n))
    numbers = int(np.prod(codec.shape_of((3, int(size), int(size)))))
    row(f"{Path(shards).name} {size}: {name}", lambda x: codec.decode(codec.encode(x)), x, numbers)


def cache(shards: str, *, folder: str, size: str = "128", batches: str = "200") -> None:
    """Batches of 32 of the stream: from the cache on disk, from memory, and decoded images.

    The latents have the shape of taef2's, whatever they hold: reading them is timed, not encoding.
    """

    def encode(x: Tensor) -> tuple[Tensor, None]:
        return torch.nn.functional.pixel_unshuffle(x, 8)[:, :32].contiguous(), None

    data = ShardSet(shards, image_size=int(size), train=Streaming(flip=True, memory_gb=0))
    index, maker = data.index("train"), data.maker("stand-in", drawn=False)
    encode_shards(data.split_set("train"), index, Path(folder), maker, encode)

    def rate(change: Callable[[Latents], Latents] | None) -> float:
        data.latents = None if change is None else change(Latents(folder, index, maker))
        stream, began = data.stream(seed=0), 0.0
        for number in range(int(batches) + 10):
            began = time.perf_counter() if number == 10 else began
            stream[np.arange(32 * number, 32 * number + 32)]
        return 32 * int(batches) / (time.perf_counter() - began)

    def in_memory(latents: Latents) -> Latents:
        for number in range(len(index.shards)):
            held = latents._tensors(number)
            latents._open[number] = {name: value.clone() for name, value in held.items()}
        return latents

    ways = {"cache": lambda latents: latents, "memory": in_memory, "images": None}
    found = {name: [rate(way) for _ in range(3)] for name, way in ways.items()}  # type: ignore[arg-type]
    content = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    content[f"stream, {Path(shards).name} {size}, images/s, best of three"] = {
        name: max(each) for name, each in found.items()
    }
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    print(found)


if __name__ == "__main__":
    torch.set_num_threads(1)
    action, place, *words = sys.argv[1:]
    {"pca": pca, "taef2": taef2, "own": own, "cache": cache}[action](
        place, **dict(word.split("=", 1) for word in words)
    )
