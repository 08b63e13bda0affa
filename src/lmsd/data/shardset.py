"""A shard set: the shards by split, their indexes, and how they are read, in plain Python."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, TypeAlias

from lmsd.data.buckets import ordered
from lmsd.data.heldout import HeldOut
from lmsd.data.index import Index
from lmsd.data.latents import Latents, Maker
from lmsd.data.mixture import Sources
from lmsd.data.reader import Form, Reader
from lmsd.data.shards import SPLITS, Source, Split, by_split, chosen, resolve
from lmsd.data.storage import Storage
from lmsd.data.stream import OnError, Stream
from lmsd.data.synthetic import only_real, refuse
from lmsd.data.text import Lines
from lmsd.data.transforms import RECIPE
from lmsd.errors import Amount, Count, Measure, Share, UserError, one_of
from lmsd.types import Progress

OnChange: TypeAlias = Literal["error", "new_epoch"]
Decode: TypeAlias = Literal["old", "new"]

_SKIP = ", or train without such samples by data.train.on_error=skip"
_NO_TRAIN = "data.shards= names no train shard (every name begins with val- or test-): add train-*.tar"
_NONE = (
    "there are no {split} shards: give data.{split}=SHARDS, or name shards {split}-000000.tar and so on "
    "among data.shards= (`lmsd data build` makes the split)"
)
_HELD = 256 << 20  # bytes of shards that a loader may keep, so that reading a sample needs no system call

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Streaming:
    """How the train split is streamed.

    first: train on the first so many images of the stream, repeatedly; window: number of shards shuffled
    together; flip: mirror at random; color: strength of random brightness, contrast and saturation;
    num_workers: processes that decode, 0 for none; memory_gb: a train split that takes less when decoded is
    kept in memory (without workers); latents: a folder of cached latents, read in place of images;
    buckets: sides are multiples of so many pixels, area and ratio near those of the image; null: squares;
    on_error: stop at a damaged sample, or skip it, which counts and names it and takes another in its
    place; on_change: when a run is resumed with other shards, refuse, or start an epoch of the new ones.
    """

    first: Count | None = None
    window: Count = 8
    flip: bool = False
    color: Share = 0.0
    num_workers: Amount = 0
    memory_gb: Measure = 0.5
    latents: str | None = None
    buckets: Count | None = None
    on_error: OnError = "stop"
    on_change: OnChange = "error"

    def __post_init__(self) -> None:
        one_of("data.train", "on_error", self.on_error, OnError)
        one_of("data.train", "on_change", self.on_change, OnChange)


class ShardSet:
    """Images and captions in webdataset shards, by split.

    shards: folder, glob, brace range, list, or http and s3 URLs; splits by file prefix train-|val-|test-;
    val, test: shards of these splits that are stored elsewhere; image_size: images are cropped and resized to
    this square; channels: 3 or 1; caption_key: a text field of KEY.json, instead of KEY.txt or "caption";
    captions: what several lines of a caption become: all joined, the first, or one drawn each time; decode:
    "old" reads images and captions as before version 2 of the index (no color profiles, no orientation by
    XMP, captions as they stand), "new" as today, also in a resumed run that began with the old way; images:
    names of further pictures of every sample (source: KEY.source.png), cropped and mirrored as it is; cache:
    where remote shards are kept; train: how the train split is streamed; weights: of several sources, one for
    each word of shards, in any unit: null mixes them by their sizes.

    Raises UserError for shards that are missing or damaged.
    """

    def __init__(
        self,
        shards: Source,
        *,
        image_size: Count,
        channels: Literal[1, 3] = 3,
        val: Source | None = None,
        test: Source | None = None,
        caption_key: str | None = None,
        captions: Lines = "join",
        decode: Decode | None = None,
        images: Sequence[str] = (),
        cache: Storage | None = None,
        train: Streaming | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        if channels not in (1, 3):
            raise UserError(f"data.channels={channels}: images have 3 channels (RGB) or 1 (gray)")
        one_of("data", "captions", captions, Lines)
        if decode is not None:
            one_of("data", "decode", decode, Decode)
        self._shards = by_split(resolve(shards))
        for split, source in zip(SPLITS[1:], (val, test), strict=True):
            if source is not None:
                self._shards[split] = chosen(source, split)
            refuse(self._shards[split], split)
            if both := set(self._shards["train"]) & set(self._shards[split]):
                raise UserError(
                    f"{min(both)} is named for both train and {split}: give data.{split}= other shards"
                )
        self.image_size, self.channels, self.images = image_size, channels, tuple(images)
        self.decode, self.train = decode, train or Streaming()
        self.sources = Sources(shards, weights)
        self._storage, self._caption_key, self._lines = cache or Storage(), caption_key, captions
        self.watched: Callable[[], AbstractContextManager[Progress | None]] = nullcontext
        self._indexes: dict[Split, Index] = {}
        self.latents: Latents | None = None

    def index(self, split: Split) -> Index:
        """The index of a split; shards without one are read and checked first.

        Raises UserError if the split has no shards.
        """
        if split not in self._indexes:
            shards = self._shards[split]
            if not shards:
                raise UserError(_NO_TRAIN if split == "train" else _NONE.format(split=split))
            with self.watched() as progress:
                self._indexes[split] = self._storage.index(shards, progress=progress)
        return self._indexes[split]

    def has(self, split: Split) -> bool:
        """Whether a split has shards."""
        return bool(self._shards[split])

    @property
    def samples(self) -> int:
        """The number of samples that are trained on."""
        return min(len(self.index("train")), self.train.first or len(self.index("train")))

    def otherwise(self) -> int:
        """How many training samples have other pixels or words than before version 2 of the index.

        All JPEGs are decoded, since only that shows which ones the former decoder refused.
        """
        with self.watched() as progress:
            return self.index("train").changed + self._reader("train").refused_before(progress)

    def prepare(self) -> None:
        """Index every split that exists."""
        for split, shards in self._shards.items():
            if shards:
                for what, count, name in self.index(split).notes():
                    log.warning("%s: %s %s (%s)", split, f"{count:,}", what, name)

    def split_set(self, split: Split, *, real: bool = False) -> HeldOut:
        """A split as a sequence, without augmentation; real: without generated images (`data.synthetic`).

        Raises UserError if the split has no shards, or generated ones alone where real are asked for.
        """
        shards = only_real(self._shards[split]) if real else ()
        return HeldOut(split, self._reader(split, index=self._storage.index(shards) if shards else None))

    def stream(self, *, seed: int, several: bool = False, batch_size: int = 1) -> Stream:
        """The train split, endless and by position, augmented; seed: of the order; batch_size: of buckets.

        several: with several ranks, which cannot stop one by one, a damaged sample is replaced, and the batch
        says so.
        """
        index, train = self.index("train"), self.train
        keep = (
            self.latents is None
            and train.buckets is None
            and train.num_workers == 0
            and len(index) * self.image_size**2 * self.channels <= train.memory_gb * 1e9  # bytes
        )
        if self.latents is not None and self.images:
            raise UserError("data.images are pictures, and latents are cached: leave data.train.latents out")
        if self.latents is not None and train.color:
            raise UserError("data.train.color changes images, and latents are cached: leave one of them out")
        largest = sorted(header.size for header in index.headers)[-2 * train.window :]
        whole = len(largest) if sum(largest) <= _HELD else 0
        return Stream(
            ordered(
                index,
                self.sources,
                sides=(self.image_size, train.buckets),
                batch_size=batch_size,
                of={"window": train.window, "seed": seed, "first": train.first},
                others={"data.train.latents": self.latents, "data.images": self.images},
            ),
            self._reader("train", keep=keep, whole=whole),
            flip=train.flip,
            color=train.color,
            on_error="skip" if several else train.on_error,
            ahead=self._storage.ahead(index, train.window),
            latents=self.latents,
        )

    def maker(self, codec: str, *, drawn: bool) -> Maker:
        """What makes latents of the train split with a codec, given by the sha256 of its weights."""
        form = self._reader("train").form
        words = (RECIPE, "old" if form.old else "decode-2", form.image_size, form.channels)
        return Maker(codec, "-".join(map(str, words)), drawn=drawn, flipped=self.train.flip)

    def _reader(
        self, split: Split, *, keep: bool = False, whole: int = 0, index: Index | None = None
    ) -> Reader:
        index = index or self.index(split)
        return Reader(
            index,
            self._storage.locate(index),
            Form(
                image_size=self.image_size,
                channels=self.channels,
                caption=_caption(index, self._caption_key),
                lines=self._lines,
                old=self.decode == "old",
                images=self.images,
            ),
            keep=keep,
            whole=whole,
            advice=_SKIP if split == "train" else "",
        )


def _caption(index: Index, key: str | None) -> str | None:
    """Where captions are read: at the given key, or KEY.txt, or "caption" of KEY.json, or nowhere."""
    if key is not None and key not in index.captions:
        known = ", ".join(sorted(index.captions)) or "none"
        raise UserError(
            f"data.caption_key={key!r} is not in every sample of {index.shards[0]} ...; there are: {known}"
        )
    if key is None and index.captions and not index.captions & {"txt", "caption"}:
        raise UserError(
            f"no 'caption' in KEY.json: give data.caption_key= one of {', '.join(sorted(index.captions))}"
        )
    return key or next((name for name in ("txt", "caption") if name in index.captions), None)
