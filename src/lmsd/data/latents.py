"""Latents of a split, encoded once: a side file for every shard, named by what made it.

    NAME.tar.DIGEST.latents      DIGEST: of the shard's sha256, the codec's weights, the way images are
    prepared
        mean [n,C,h,w]           E(x) of every sample, unscaled, float16
        spread                   its standard deviation, where latents are drawn
        mean_flipped, ...        the same of the mirrored images: E(mirror x) is not the mirror of E(x)

A file is written whole or not at all, and one that exists is what its name says: so a killed encoding goes on
where it was, on any number of ranks, and what changes (shard, codec, image size) makes another name. Files
are in safetensors' format; their metadata tell what made them, for the message where none fits.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lmsd.data.heldout import HeldOut
from lmsd.data.index import Index
from lmsd.data.urls import name_of
from lmsd.errors import UserError
from lmsd.files import replacing

if TYPE_CHECKING:
    from lmsd.types import Progress

Integers = NDArray[np.int64]
Encode: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""Images [B,C,H,W] in [-1,1] → E(x), and its standard deviation where latents are drawn."""

STORED = torch.float16
SUFFIX = ".latents"
MADE = "made"  # the one entry of the metadata: several come in random order
AT_ONCE = 16  # images encoded together
WAY = "`lmsd data encode` with the words of this run makes them"
_KEPT = 64  # open side files


@dataclass(frozen=True)
class Maker:
    """What makes latents of a shard: codec, the sha256 of its weights; transform: how images are prepared.

    drawn: with standard deviations; flipped: of the mirrored images, too.
    """

    codec: str
    transform: str
    drawn: bool = False
    flipped: bool = False

    def told(self, shard: str) -> dict[str, str]:
        """What a shard's file says of itself; shard: its sha256."""
        return {name: str(value) for name, value in {"shard": shard, **vars(self)}.items()}

    def name(self, shard: str, sha256: str) -> str:
        """The name of a shard's file."""
        content = json.dumps(self.told(sha256), sort_keys=True).encode()
        return f"{name_of(shard)}.{hashlib.sha256(content).hexdigest()[:16]}{SUFFIX}"


class Latents:
    """The side files of an index's shards in a folder.

    Raises UserError where some are missing, with the difference to those that are there.
    """

    def __init__(self, folder: str | Path, index: Index, maker: Maker) -> None:
        self.folder, self.maker = Path(folder), maker
        self._files = [self.folder / name for name in names(index, maker)]
        self._open: OrderedDict[int, dict[str, Tensor]] = OrderedDict()
        missing = [number for number, file in enumerate(self._files) if not file.is_file()]
        if missing:
            shard, header = index.shards[missing[0]], index.headers[missing[0]]
            raise UserError(
                f"data.train.latents={folder} lacks the latents of {len(missing)} of {len(self._files)} "
                f"shards{_difference(self.folder, name_of(shard), maker.told(header.sha256))}; {WAY}"
            )

    def __call__(
        self, shard: Integers, sample: Integers, flipped: NDArray[np.bool_]
    ) -> tuple[Tensor, Tensor | None]:
        """E(x) of samples, and its standard deviation where latents are drawn, float32 [n,C,h,w] each."""
        found = [
            self._rows(name, shard, sample, flipped) for name in ("mean", "spread")[: 1 + self.maker.drawn]
        ]
        return found[0], found[1] if self.maker.drawn else None

    def _rows(self, name: str, shard: Integers, sample: Integers, flipped: NDArray[np.bool_]) -> Tensor:
        out: Tensor | None = None
        pairs = np.stack([shard, flipped.astype(np.int64)], axis=1)
        for number, mirrored in np.unique(pairs, axis=0).tolist():
            at = np.flatnonzero((shard == number) & (flipped == bool(mirrored)))
            rows = self._tensors(number)[name + "_flipped" * mirrored]
            picked = rows[torch.from_numpy(sample[at])].float()
            out = picked.new_empty(len(shard), *picked.shape[1:]) if out is None else out
            out[torch.from_numpy(at)] = picked
        assert out is not None
        return out

    def _tensors(self, number: int) -> dict[str, Tensor]:
        if number not in self._open:
            self._open[number] = _read(self._files[number])
            if len(self._open) > _KEPT:
                self._open.popitem(last=False)
        return self._open[number]

    def __getstate__(self) -> dict[str, Any]:
        # maps of files belong to a process
        return {**vars(self), "_open": OrderedDict()}


def names(index: Index, maker: Maker) -> list[str]:
    """The names of the side files of all shards."""
    pairs = zip(index.shards, index.headers, strict=True)
    return [maker.name(shard, header.sha256) for shard, header in pairs]


def encode_shards(
    split: HeldOut,
    index: Index,
    folder: Path,
    maker: Maker,
    encode: Encode,
    *,
    rank: int = 0,
    world: int = 1,
    progress: "Progress | None" = None,
) -> int:
    """Write the side files that are not there of every world-th shard; how many were written.

    Raises UserError for a damaged sample, and for latents that float16 cannot hold.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mine = list(range(rank, len(index.shards), world))
    starts, written = np.cumsum(index.sizes) - index.sizes, 0
    listed = names(index, maker)
    for done, number in enumerate(mine, 1):
        file = folder / listed[number]
        if not file.is_file():
            for left in folder.glob(f"{file.name}.tmp.*"):  # of a process that was killed
                left.unlink(missing_ok=True)
            first = int(starts[number])
            told = json.dumps(maker.told(index.headers[number].sha256), sort_keys=True)
            found = _encoded(split, range(first, first + int(index.sizes[number])), maker, encode)
            with replacing(file) as temporary:
                save_file(found, temporary, metadata={MADE: told})
            written += 1
        if progress is not None:
            progress(done, len(mine), "encoding shards")
    return written


@torch.no_grad()
def _encoded(split: HeldOut, rows: range, maker: Maker, encode: Encode) -> dict[str, Tensor]:
    parts: dict[str, list[Tensor]] = {}
    for start in range(rows.start, rows.stop, AT_ONCE):
        x = split.images(range(start, min(start + AT_ONCE, rows.stop)))
        for suffix, images in (("", x), ("_flipped", x.flip(-1)))[: 1 + maker.flipped]:
            mean, spread = encode(images)
            found = {"mean": mean} if spread is None else {"mean": mean, "spread": spread}
            for name, value in found.items():
                kept = value.to("cpu", STORED)
                if not bool(kept.isfinite().all()):
                    raise UserError(f"sample {start} and after: its latents do not fit into {STORED}")
                parts.setdefault(name + suffix, []).append(kept)
    return {name: torch.cat(part).contiguous() for name, part in parts.items()}


def _read(file: Path) -> dict[str, Tensor]:
    """The tensors of a side file, mapped rather than read."""
    try:
        with safe_open(file, "pt") as opened:
            names = list(opened.keys())
            return {name: opened.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise UserError(f"the latents {file} are damaged: delete the file; {WAY}") from error


def _difference(folder: Path, shard: str, told: Mapping[str, str]) -> str:
    """How the nearest side file of a shard in a folder differs from the one that is looked for."""
    nearest: list[str] = []
    for file in sorted(folder.glob(f"{escape(shard)}.*{SUFFIX}")):
        try:
            with safe_open(file, "pt") as opened:
                own = json.loads((opened.metadata() or {}).get(MADE, "{}"))
        except (OSError, ValueError, SafetensorError):
            continue
        apart = [
            f"{name} was {own.get(name, 'none')[:40]} and is {value[:40]}"
            for name, value in told.items()
            if own.get(name) != value
        ]
        nearest = apart if not nearest or len(apart) < len(nearest) else nearest
    return f" (of {shard} there are others: {', '.join(nearest)})" if nearest else ""
