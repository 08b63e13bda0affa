"""The exact reward of `shapes`: which of a caption's words the picture shows."""

from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from lmsd.arguments import explained
from lmsd.data.builders.shapes import WORDS, check
from lmsd.errors import one_of
from lmsd.rewards.base import NOBODY, Reward, captions_of
from lmsd.types import Batch, Players

Credit: TypeAlias = Literal["words", "all"]


class SceneWords(Reward):
    """The share of shape, color, size and position that an exact reader finds right, in [0, 1].

    credit: words gives a quarter for each of them, all gives 1 to a picture with all of them right, else 0.
    """

    @explained
    def __init__(self, credit: Credit = "words") -> None:
        one_of("shapes reward", "credit", credit, Credit)
        self.credit = credit

    @explained
    def __call__(self, images: Tensor, batch: Batch, players: Players = NOBODY) -> Tensor:
        """[B]; images of three channels, 16 pixels or more. Raises UserError for captions of other data."""
        right = check(images, captions_of(batch))
        if self.credit == "all":
            return torch.from_numpy(right["all"].astype(np.float32))
        return torch.from_numpy(np.mean([right[word] for word in WORDS], axis=0, dtype=np.float32))
