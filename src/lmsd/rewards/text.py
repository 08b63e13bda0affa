"""Text alignment and aesthetics by a CLIP from a local folder.

    alignment   w max(cos(f(x), g(c)), 0),  w = 2.5 (Hessel et al. 2021, CLIPScore), or the cosine itself
    aesthetic   h(f(x)/‖f(x)‖),  h: consecutive linear layers from a local file (LAION's predictor)

Both are differentiable: images are resized to the encoder's side by bicubic interpolation in torch.
"""

import re
import warnings
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lmsd.arguments import explained
from lmsd.errors import UserError
from lmsd.features.clip import CLIP, MEAN, STD
from lmsd.models.frozen import freeze
from lmsd.rewards.base import NOBODY, Reward, captions_of
from lmsd.types import Batch, Players


class _CLIP:
    """Unit features of images and captions, frozen, from a folder in the format of transformers."""

    def __init__(self, path: str | Path) -> None:
        if not (Path(path) / "config.json").is_file():
            raise UserError(f"reward: {path} is not a folder with a CLIP (config.json is missing)")
        self.clip = CLIP(path)
        self.model = freeze(self.clip.net, saved=False)
        self.side = int(self.model.config.vision_config.image_size)
        self.told = False
        self.text = lru_cache(maxsize=4096)(self._text)

    def images(self, images: Tensor) -> Tensor:
        """Unit features [B,D] of images [B,1|3,H,W] in [-1,1]; differentiable."""
        self.model.to(images.device)
        x = images.clamp(-1, 1).float().expand(-1, 3, -1, -1)
        x = F.interpolate(x, (self.side, self.side), mode="bicubic", antialias=True, align_corners=False)
        mean, std = (x.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        pixels = ((x.clamp(-1, 1) + 1) / 2 - mean) / std
        return F.normalize(self.clip.images(pixels), dim=1)

    def _text(self, caption: str) -> Tensor:
        if not self.told and self.clip.cut([caption]):
            self.told = True
            warnings.warn(
                f"reward: CLIP reads {self.clip.length} tokens of a caption, and '{caption}' has more: the "
                "rest is cut",
                stacklevel=2,
            )
        return F.normalize(self.clip.texts([caption]), dim=1)[0]


class TextAlignment(Reward):
    """CLIPScore of image and caption, in [0, weight]; with clip=false the cosine, in [-1, 1].

    path: a local folder with a CLIP model and its tokenizer; weight: of the cosine; clip: count negative ones
    as 0.
    """

    differentiable = True

    @explained
    def __init__(self, path: str | Path, *, weight: float = 2.5, clip: bool = True) -> None:
        self.model, self.weight, self.clip = _CLIP(path), weight, clip

    @explained
    def __call__(self, images: Tensor, batch: Batch, players: Players = NOBODY) -> Tensor:
        """[B]."""
        features = self.model.images(images)
        text = torch.stack([self.model.text(caption) for caption in captions_of(batch)]).to(features)
        cosine = (features * text).sum(1)
        return self.weight * cosine.clamp(min=0) if self.clip else cosine


class Aesthetic(Reward):
    """A head of linear layers on CLIP's unit image features; LAION's gives about 1 to 10.

    path: a local folder with a CLIP; head: a .safetensors file with the layers' weights and biases, in the
    order of the numbers in their names.
    """

    differentiable = True

    @explained
    def __init__(self, path: str | Path, head: str | Path) -> None:
        if not Path(head).is_file():
            raise UserError(f"reward: there is no aesthetic head at {head}")
        from safetensors.torch import load_file

        self.model = _CLIP(path)
        state = load_file(str(head))
        weights = sorted((name for name in state if name.endswith("weight")), key=_numbers)
        self.layers = [
            (state[name].float(), state[name.removesuffix("weight") + "bias"].float()) for name in weights
        ]
        if not self.layers or self.layers[-1][0].shape[0] != 1:
            raise UserError(f"reward: {head} holds no linear layers that end in one score")

    @explained
    def __call__(self, images: Tensor, batch: Batch, players: Players = NOBODY) -> Tensor:
        """[B]."""
        h = self.model.images(images)
        for weight, bias in self.layers:
            h = F.linear(h, weight.to(h), bias.to(h))
        return h[:, 0]


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]
