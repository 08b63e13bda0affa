"""A codec scored by what it gives back: its Fréchet distance to the images themselves is rFD."""

import torch
from torch import Tensor

from lmsd.features.base import ImageSet
from lmsd.models.codec import Codec
from lmsd.rng import Rng
from lmsd.types import Batch

AT_ONCE = 64


class Reconstruction:
    """(batch, rng) → the images of a split at a batch's positions, encoded and decoded."""

    def __init__(self, codec: Codec, split: ImageSet) -> None:
        self.codec, self.split = codec, split

    @torch.no_grad()
    def __call__(self, batch: Batch, rng: Rng) -> Tensor:
        """Images [B,C,H,W] in [-1,1], on the CPU."""
        training, device = self.codec.training, next(self.codec.parameters(), torch.zeros(())).device
        self.codec.eval()
        made = [
            self.codec.decode(self.codec.encode(part.to(device))).clamp(-1, 1).cpu()
            for part in self.split.images(batch.position.tolist()).split(AT_ONCE)
        ]
        self.codec.train(training)
        return torch.cat(made)
