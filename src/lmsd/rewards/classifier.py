"""The log-probability of what was asked for under an lmsd-cnn.

    labels      log softmax(logits)[label]
    captions    Σ_w log σ(±logit_w), + for the words of the caption, − for the rest of the vocabulary

In nats, at most 0, higher is better, differentiable. An evaluation with the same net no longer says anything:
train another one (another seed, another augmentation) for the reward.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lmsd.arguments import explained
from lmsd.features.cnn import load_extractor
from lmsd.models.frozen import freeze
from lmsd.rewards.base import NOBODY, Reward
from lmsd.types import Batch, Players


class ClassifierLogProb(Reward):
    """log p(asked | image) under the lmsd-cnn in a folder (made by lmsd data features).

    path: the folder; bound: smallest value, since a classifier is only sure of the kind of image it knows.
    """

    differentiable = True

    @explained
    def __init__(self, path: str | Path, *, bound: float = -20.0) -> None:
        self.extractor = load_extractor(path)
        self.bound = bound
        freeze(self.extractor.net, saved=False)

    @property
    def name(self) -> str:
        """The extractor's own name."""
        return f"classifier {self.extractor.name}"

    @explained
    def __call__(self, images: Tensor, batch: Batch, players: Players = NOBODY) -> Tensor:
        """[B] in [bound, 0], nats."""
        net = self.extractor.net.to(images.device)
        logits = net(images)[1]
        goal = self.extractor.target(batch.label, batch.text).to(images.device)
        if self.extractor.recipe.target == "label":
            value = -F.cross_entropy(logits, goal, reduction="none")
        else:
            value = -F.binary_cross_entropy_with_logits(logits, goal, reduction="none").sum(1)
        return torch.clamp(value, min=self.bound)
