"""Somebody else's `torchmetrics.Metric` as a score of ours, by the three ways in which metrics learn.

    update(images)               of the generated images
    update(images, real=bool)    of the held-out images and of the generated ones
    update(images, captions)     of the generated images and their captions (its annotation says str)

A metric of pairs (PSNR, SSIM, LPIPS: an image against its own original) says nothing of generated images and
is refused. Images are uint8, or floats in [0, 1] for a metric that has `normalize` set, or that has no such
option and reads no captions.
"""

import inspect
import math
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from lmsd.errors import UserError
from lmsd.evaluation.catalog import BESIDE, CATALOG
from lmsd.metrics import Interval, Score
from lmsd.types import levels

Way = Literal["images", "real", "captions"]


def opened(name: str, make: Callable[[], Any]) -> Metric:
    """The metric that `make` constructs without a network.

    Raises UserError for a name that a score of ours has, for what is no metric or is one of pairs, and for
    what its constructor refuses: arguments that it does not take, a package or weights that are not here.
    """
    about = f"evaluate.metrics.{name}"
    if name in (*CATALOG, "neighbors") or name.rpartition("_")[2] in BESIDE or not name.isidentifier():
        raise UserError(
            f"{about}: take another name; it has letters, digits and _, does not end in {', '.join(BESIDE)}, "
            "and is none of our own scores'"
        )
    try:
        with offline():
            metric = make()
    except UserError as error:
        lacking = "; what needs torchvision, torch-fidelity or piq is not there without them"
        raise UserError(f"{about}: {error}{lacking if 'is not there' in str(error) else ''}") from error
    except (ImportError, OSError) as error:
        raise UserError(
            f"{about} needs a package or weights that are not on this machine, and nothing is downloaded: "
            f"{' '.join(str(error).split())}"
        ) from error
    except Exception as error:  # somebody else's code, given what the user wrote
        raise UserError(f"{about} cannot be made: {' '.join(str(error).split())}") from error
    if not isinstance(metric, Metric):
        raise UserError(f"{about} makes a {type(metric).__name__}, no torchmetrics.Metric")
    way_of(name, metric)
    return metric


@contextmanager
def offline() -> Iterator[None]:
    """No name is looked up and no model hub asked: what wants a download fails at once, without retries."""
    from huggingface_hub import constants

    def refuse(*given: object, **named: object) -> Any:
        raise OSError(f"it wants a download from {given[0]}")

    found, before = socket.getaddrinfo, constants.HF_HUB_OFFLINE
    socket.getaddrinfo, constants.HF_HUB_OFFLINE = refuse, True
    try:
        yield
    finally:
        socket.getaddrinfo, constants.HF_HUB_OFFLINE = found, before


def way_of(name: str, metric: Metric) -> Way:
    """How a metric learns. Raises UserError for one of pairs, and for one that takes no images."""
    parameters = inspect.signature(metric.update).parameters.values()
    wanted = [each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.POSITIONAL_ONLY)]
    if any(each.name == "real" for each in wanted):
        return "real"
    needed = [each for each in wanted if each.default is each.empty]
    if len(needed) == 1:
        return "images"
    if len(needed) == 2 and "str" in str(needed[1].annotation):
        return "captions"
    takes = ", ".join(each.name for each in needed)
    raise UserError(
        f"evaluate.metrics.{name}: {type(metric).__name__}.update takes ({takes}), an image and its own "
        "original: that is for edits and autoencoders; generated images have none"
    )


class Foreign:
    """A metric of another's, by the name of its score, on one process; see the module for what it gets."""

    def __init__(self, name: str, metric: Metric) -> None:
        self.name, self.metric, self.way = name, metric, way_of(name, metric)
        metric.sync_on_compute = metric._to_sync = False
        options = inspect.signature(type(metric).__init__).parameters
        self.floats = bool(
            vars(metric).get("normalize", "normalize" not in options and self.way != "captions")
        )

    def score(
        self, made: Sequence[Sequence[Tensor]], real: Sequence[Tensor], captions: Sequence[str] | None
    ) -> dict[str, Score]:
        """Scores of the images of every seed, parts of them uint8 [b,C,H,W] in order; real: likewise.

        What `compute` gives as several numbers are NAME_1, NAME_2, ...
        """
        found = [self._once(images, real, captions or ()) for images in made]
        columns = zip(*found, strict=True)
        names = [self.name, *(f"{self.name}_{place}" for place in range(1, len(found[0])))]
        return {
            name: Score(Interval(fmean(column), math.nan, math.nan), by_seed=tuple(column))
            for name, column in zip(names, columns, strict=True)
        }

    def try_out(self, shape: Sequence[int], captions: Sequence[str] | None) -> None:
        """Show it two black images [C,H,W], so that what it does not take is told before any is made."""
        if self.way == "captions" and captions is None:
            raise UserError(f"evaluate.metrics.{self.name} reads captions, and the held-out set has none")
        black = torch.zeros(2, *shape, dtype=torch.uint8)
        try:
            self._learn([black], [black], (captions or ())[:2])
        except Exception as error:  # somebody else's code
            raise UserError(
                f"evaluate.metrics.{self.name} does not take images {list(black.shape)}: "
                f"{' '.join(str(error).split())}"
            ) from error
        self.metric.reset()

    def _once(self, images: Sequence[Tensor], real: Sequence[Tensor], captions: Sequence[str]) -> list[float]:
        self.metric.reset()
        self._learn(images, real, captions)
        return numbers(self.name, self.metric.compute())

    def _learn(self, images: Sequence[Tensor], real: Sequence[Tensor], captions: Sequence[str]) -> None:
        update: Any = self.metric.update
        start = 0
        for part in real if self.way == "real" else ():
            update(self._ready(part), real=True)
        for part in images:
            if self.way == "real":
                update(self._ready(part), real=False)
            elif self.way == "captions":
                update(self._ready(part), list(captions[start : start + len(part)]))
            else:
                update(self._ready(part))
            start += len(part)

    def _ready(self, images: Tensor) -> Tensor:
        return images.float() / 255 if self.floats else images


def numbers(name: str, value: object) -> list[float]:
    """The scalars of what a metric computes. Raises UserError for anything else."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return [float(value)]
    if isinstance(value, tuple | list):
        return [number for each in value for number in numbers(name, each)]
    got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
    raise UserError(f"evaluate.metrics.{name} computes {got}: a score is a number, or a tuple of them")


def as_levels(images: Tensor) -> Tensor:
    """Images in [-1,1] as a metric gets them, uint8 on the CPU."""
    return torch.as_tensor(levels(images)).cpu()


def taken(
    metrics: Mapping[str, Metric], shape: Sequence[int], captions: Sequence[str] | None
) -> list[Foreign]:
    """The metrics by the names of their scores, each tried on images [C,H,W]. Raises UserError."""
    found = [Foreign(name, metric) for name, metric in metrics.items()]
    for each in found:
        each.try_out(shape, captions)
    return found


def scored(
    metrics: Sequence[Foreign],
    made: Sequence[Tensor | None],
    real: Sequence[Tensor],
    captions: Sequence[str] | None,
    chunk: int,
) -> dict[str, Score]:
    """The scores of several metrics; made: the images of every seed, uint8 [n,C,H,W]; real: parts of them."""
    parts = [images.split(chunk) for images in made if images is not None]
    found: dict[str, Score] = {}
    for each in metrics:
        found |= each.score(parts, real, captions)
    return found
