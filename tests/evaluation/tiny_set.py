"""A data set that is known exactly: 8×8 images with one bright half, captions and labels that say which."""

import torch
from torch import Tensor

from lmsd.errors import UserError

WORDS = ["left", "right", "top", "bottom"]


def blobs(labels: Tensor, seed: int) -> Tensor:
    """Images [n,1,8,8]: the half that the label names is bright, plus noise, on 256 levels."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.35 * torch.randn(len(labels), 1, 8, 8, generator=generator) - 0.5
    for row, label in enumerate(labels.tolist()):
        half = [(slice(None), slice(0, 4)), (slice(None), slice(4, 8)), (slice(0, 4),), (slice(4, 8),)][label]
        x[row, 0][half] += 0.8
    return x.clamp(-1, 1).add(1).mul(127.5).round().div(127.5).sub(1)


class TinySet:
    """n samples in memory."""

    def __init__(self, n: int, seed: int, *, labels: bool = True, captions: bool = True) -> None:
        self.y = torch.randint(0, 4, (n,), generator=torch.Generator().manual_seed(seed))
        self.x = blobs(self.y, seed)
        self.hash: str | None = f"tiny {n} {seed}"
        self.has_labels, self.has_captions = labels, captions
        self.read = 0

    def __len__(self) -> int:
        return len(self.x)

    def images(self, indices) -> Tensor:
        self.read += len(indices)
        return self.x[torch.as_tensor(list(indices))]

    def labels(self, indices) -> Tensor | None:
        return self.y[torch.as_tensor(list(indices))] if self.has_labels else None

    def captions(self, indices) -> list[str]:
        if not self.has_captions:
            raise UserError("no captions")
        return [f"a blob at the {WORDS[self.y[index]]}" for index in indices]
