"""CLIP and DINOv2 as extractors, by transformers, from a folder that `save_pretrained` wrote.

Images are resized to the model's own size (bicubic, antialiased: `resize: bicubic-antialias`) and normalized
with the mean and deviation in the folder's preprocessor_config.json, else with the family's own.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmsd.errors import UserError
from lmsd.features.base import Speechless, in_range
from lmsd.features.clip import CLIP, MEAN, STD, load

_CHUNK = 64
_READ = ("*.safetensors", "*.json", "merges.txt")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _Pretrained(Speechless):
    """What both share: identity, preparation of images, chunks."""

    exclusive = False
    reference = False
    resize = "bicubic-antialias"
    kind = ""

    def __init__(
        self, path: str | Path, mean: tuple[float, ...], std: tuple[float, ...], default_size: int | None
    ) -> None:
        folder = Path(path)
        if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
            raise UserError(f"no {self.kind} model at {path}: a folder with config.json and *.safetensors")
        found = json.loads((folder / "config.json").read_text()).get("model_type")
        if found != self.kind:
            raise UserError(f"the model at {path} is of type {found}, not {self.kind}: name another folder")
        self.sha256 = _hash(folder)
        described = folder / "preprocessor_config.json"
        card: dict[str, Any] = json.loads(described.read_text()) if described.is_file() else {}
        self.size = default_size or _side(card.get("crop_size") or card.get("size"))
        self.mean, self.std = (
            torch.tensor(card.get(name, default)).reshape(1, 3, 1, 1)
            for name, default in (("image_mean", mean), ("image_std", std))
        )
        self.net: Any = None

    @property
    def name(self) -> str:
        """`clip@ab12`: the kind and the weights."""
        return f"{self.kind}@{self.sha256[:4]}"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [n,1 or 3,H,W] (`in_range`) → (features [n,d] on the CPU, logits [n,0])."""
        unit = in_range(images).add(1.0).div_(2.0).expand(-1, 3, -1, -1)
        parts = [self._embed(self._prepared(part).to(self.net.device)) for part in unit.split(_CHUNK)]
        features = torch.cat(parts).float().cpu()
        return features, features[:, :0]

    def _prepared(self, unit: Tensor) -> Tensor:
        """Pixels in [0,1] as the model wants them."""
        sides = (self.size, self.size)
        x = F.interpolate(unit, sides, mode="bicubic", antialias=True, align_corners=False).clamp(0.0, 1.0)
        return (x - self.mean) / self.std

    def _embed(self, pixels: Tensor) -> Tensor:
        raise NotImplementedError


class CLIPExtractor(_Pretrained):
    """Projected image embeddings [n,d] of a CLIP model, and its captions' in the same space."""

    kind = "clip"

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, MEAN, STD, _configured(path, "vision_config"))
        if not any((Path(path) / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            raise UserError(f"no tokenizer at {path}: save the model's own there (tokenizer.json)")
        self._clip = CLIP(path)
        self.net = self._clip.net

    def _embed(self, pixels: Tensor) -> Tensor:
        return self._clip.images(pixels)

    def cut(self, captions: Sequence[str]) -> int:
        """How many have more tokens than the model's length."""
        return self._clip.cut(captions)

    def texts(self, captions: Sequence[str]) -> Tensor:
        """Captions, cut to the model's length → embeddings [n,d] on the CPU."""
        starts = range(0, len(captions), _CHUNK)
        return torch.cat([self._clip.texts(captions[at : at + _CHUNK]).float().cpu() for at in starts])


class DINOv2Extractor(_Pretrained):
    """The class token [n,d] of a DINOv2 model."""

    kind = "dinov2"

    def __init__(self, path: str | Path) -> None:
        from transformers import Dinov2Model

        super().__init__(path, IMAGENET_MEAN, IMAGENET_STD, None)
        self.net = load(Dinov2Model, path)

    def _embed(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.net(pixel_values=pixels).last_hidden_state[:, 0]
        return out


def _hash(folder: Path) -> str:
    """sha256 of all that features depend on: the weights, and every description beside them."""
    digest = hashlib.sha256()
    for file in sorted(file for kind in _READ for file in folder.glob(kind)):
        digest.update(f"{file.name} {file.stat().st_size} ".encode() + file.read_bytes())
    return digest.hexdigest()


def _configured(path: str | Path, part: str) -> int | None:
    """The image size that a model's own configuration demands."""
    config = Path(path) / "config.json"
    card = json.loads(config.read_text()) if config.is_file() else {}
    size = card.get(part, {}).get("image_size")
    return None if size is None else int(size)


def _side(size: Any) -> int:
    """224, {"height": 224, ...} or {"shortest_edge": 224} → 224, which is also the default."""
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    return int(size or 224)
