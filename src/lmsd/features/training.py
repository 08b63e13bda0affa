"""How the small nets learn: AdamW in one cycle over random batches of images that lie in memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmsd.features.base import ImageSet, captions_of
from lmsd.types import Progress, levels

Augment = Literal["none", "shift", "shift_flip"]
CHUNK = 500


@dataclass(frozen=True)
class Training:
    """How a net learns: from so many images in all, those of a step, the peak of the rate, the randomness."""

    images: int
    batch_size: int
    learning_rate: float
    augment: Augment
    seed: int


def budget(images: int) -> int:
    """How many images to learn from of so many: six passes, at least 60,000, at most a hundred passes."""
    return max(6 * images, min(60_000, 100 * images))


def loaded(split: ImageSet, *, alone: bool = False) -> tuple[Tensor, Tensor | None, list[str] | None]:
    """Every image as uint8 [n,C,H,W], and unless they are wanted alone every label and every caption."""
    rows = [range(start, min(start + CHUNK, len(split))) for start in range(0, len(split), CHUNK)]
    pixels = torch.cat([levels(split.images(part)) for part in rows])
    if alone:
        return pixels, None, None
    everything = range(len(split))
    return pixels, split.labels(everything), captions_of(split, everything)


def fit(
    net: nn.Module,
    training: Training,
    count: int,
    loss: Callable[[Tensor, torch.Generator], Tensor],
    *,
    told: str,
    weight_decay: float = 0.05,
    progress: Progress | None = None,
) -> None:
    """AdamW in one cycle over batches of `count` rows; loss: of a step's rows; told: who learns, in words."""
    net.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=weight_decay)
    generator = torch.Generator().manual_seed(training.seed)
    steps = max(1, training.images // training.batch_size)
    for step, rows in enumerate(_batches(count, training.batch_size, steps, generator)):
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * _one_cycle(step / steps)
        value = loss(rows, generator)
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if progress is not None and (step % 25 == 0 or step == steps - 1):
            done, size = step + 1, training.batch_size
            progress(done * size, steps * size, f"{told}, loss {float(value.detach()):.3f}")
    net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def _batches(count: int, size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows of every step: whole batches of one random order after another."""
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(order) < size:
            order = torch.randperm(count, generator=generator)
        rows, order = order[:size], order[size:]
        yield rows


def _one_cycle(progress: float) -> float:
    """Linear up over the first fifth, linear down to 0 over the rest."""
    return progress / 0.2 if progress < 0.2 else (1.0 - progress) / 0.8


def augmented(x: Tensor, augment: Augment, generator: torch.Generator) -> Tensor:
    """Shift each image [B,C,H,W] by up to H/8 pixels (edges reflected), mirror half of them if asked."""
    if augment == "none":
        return x
    batch, size = len(x), x.shape[-1]
    reach = max(1, size // 8)
    offset = torch.randint(0, 2 * reach + 1, (2, batch, 1), generator=generator)
    rows, columns = offset + torch.arange(size)
    if augment == "shift_flip":
        mirror = torch.rand(batch, 1, generator=generator) < 0.5
        columns = torch.where(mirror, columns.flip(1), columns)
    padded = F.pad(x, (reach, reach, reach, reach), mode="reflect").permute(0, 2, 3, 1)
    picked = padded[torch.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)
