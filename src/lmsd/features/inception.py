"""Inception-v3 as Fréchet distances have been taken with since 2017, from weights in a local file.

The net of 5 December 2015 (Szegedy et al. 2016) differs from later ones: 1,008 classes, averages that do not
count the padding, a maximum in the last block's pool. Protocol of the reference: pixels as uint8, bilinear to
299×299 as TensorFlow 1 does it (source = target · in/out, no half-pixel shift, no antialiasing), then
(x − 128)/128; 2,048 means over space; logits without their bias. Scores carry it as `resize: tf1-bilinear`.

Weights: the state dict of the usual port (`...inception-2015-12-05-6726825d.pth`), or the TorchScript file of
the same net, `forward(uint8, return_features, no_output_bias)`, which resizes by itself.
"""

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmsd.errors import UserError
from lmsd.features.base import Speechless, in_range
from lmsd.types import levels

REFERENCE = "6726825d"
"""How the sha256 of the reference state dict begins; its file is named after it."""
SIZE = 299
_CHUNK = 32


class BasicConv2d(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(
        self,
        channels: int,
        width: int,
        kernel: int | tuple[int, int] = 1,
        stride: int = 1,
        padding: int | str = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """[B,channels,H,W] → [B,width,H',W']."""
        return F.relu(self.bn(self.conv(x)))


_Kernel: TypeAlias = int | tuple[int, int]
_Chain: TypeAlias = Sequence[tuple[int, _Kernel] | tuple[int, _Kernel, _Kernel]]


class _Block(nn.Module):
    """Branches side by side, each a chain of convolutions.

    branches: by name, (width, kernel) of every link, or (width, kernel, kernel) for two of them side by side;
    pool: width of the convolution after the pooled branch, an average unless it is a maximum; None: the pool
    is a branch itself, at stride 2 like the last link of every other one.
    """

    def __init__(
        self,
        channels: int,
        branches: Mapping[str, _Chain],
        pool: int | None = None,
        *,
        maximum: bool = False,
    ) -> None:
        super().__init__()
        self.maximum, self.chains = maximum, list[list[list[str]]]()
        for branch, links in branches.items():
            self.chains.append([])
            before = channels
            for place, (width, *kernels) in enumerate(links, 1):
                name = branch if len(links) == 1 else f"{branch}_{place}"
                names = [name] if len(kernels) == 1 else [f"{name}a", f"{name}b"]
                stride = 2 if pool is None and place == len(links) else 1
                for each, kernel in zip(names, kernels, strict=True):
                    padding = 0 if stride == 2 else "same"
                    self.add_module(each, BasicConv2d(before, width, kernel, stride, padding))
                self.chains[-1].append(names)
                before = width * len(kernels)
        if pool is not None:
            self.add_module("branch_pool", BasicConv2d(channels, pool))

    def forward(self, x: Tensor) -> Tensor:
        """Every branch of x, joined along the channels."""
        found = []
        for links in self.chains:
            y = x
            for names in links:
                y = torch.cat([self.get_submodule(name)(y) for name in names], dim=1)
            found.append(y)
        return torch.cat([*found, self._pooled(x)], dim=1)

    def _pooled(self, x: Tensor) -> Tensor:
        last = dict(self.named_children()).get("branch_pool")
        if last is None:
            return F.max_pool2d(x, 3, stride=2)
        if self.maximum:
            return last(F.max_pool2d(x, 3, stride=1, padding=1))  # type: ignore[no-any-return]
        return last(F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False))  # type: ignore[no-any-return]


def _a(channels: int, pool: int) -> _Block:
    double = [(64, 1), (96, 3), (96, 3)]
    return _Block(
        channels, {"branch1x1": [(64, 1)], "branch5x5": [(48, 1), (64, 5)], "branch3x3dbl": double}, pool
    )


def _c(width: int) -> _Block:
    row, column = (1, 7), (7, 1)
    one: _Chain = [(width, 1), (width, row), (192, column)]
    two: _Chain = [(width, 1), (width, column), (width, row), (width, column), (192, row)]
    return _Block(768, {"branch1x1": [(192, 1)], "branch7x7": one, "branch7x7dbl": two}, 192)


def _e(channels: int, *, maximum: bool = False) -> _Block:
    one: _Chain = [(384, 1), (384, (1, 3), (3, 1))]
    two: _Chain = [(448, 1), (384, 3), (384, (1, 3), (3, 1))]
    branches: Mapping[str, _Chain] = {"branch1x1": [(320, 1)], "branch3x3": one, "branch3x3dbl": two}
    return _Block(channels, branches, 192, maximum=maximum)


class InceptionV3(nn.Module):
    """The net (module text); its state dict's names are those of the usual port."""

    def __init__(self) -> None:
        super().__init__()
        double = [(64, 1), (96, 3), (96, 3)]
        long: _Chain = [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3)]
        layers = {
            "Conv2d_1a_3x3": BasicConv2d(3, 32, 3, stride=2),
            "Conv2d_2a_3x3": BasicConv2d(32, 32, 3),
            "Conv2d_2b_3x3": BasicConv2d(32, 64, 3, padding=1),
            "Conv2d_3b_1x1": BasicConv2d(64, 80),
            "Conv2d_4a_3x3": BasicConv2d(80, 192, 3),
            "Mixed_5b": _a(192, 32),
            "Mixed_5c": _a(256, 64),
            "Mixed_5d": _a(288, 64),
            "Mixed_6a": _Block(288, {"branch3x3": [(384, 3)], "branch3x3dbl": double}),
            "Mixed_6b": _c(128),
            "Mixed_6c": _c(160),
            "Mixed_6d": _c(160),
            "Mixed_6e": _c(192),
            "Mixed_7a": _Block(768, {"branch3x3": [(192, 1), (320, 3)], "branch7x7x3": long}),
            "Mixed_7b": _e(1280),
            "Mixed_7c": _e(2048, maximum=True),
        }
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.names = tuple(layers)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [n,3,H,W] → (features [n,2048], logits without bias [n,1008])."""
        x = (tf1_bilinear(pixels.float(), SIZE) - 128.0) / 128.0
        for name in self.names:
            x = F.max_pool2d(x, 3, stride=2) if name in ("Conv2d_3b_1x1", "Mixed_5b") else x
            x = self.get_submodule(name)(x)
        features = x.mean(dim=(2, 3))
        return features, features @ self.fc.weight.T


def tf1_bilinear(x: Tensor, size: int) -> Tensor:
    """[n,C,H,W] resized to size×size as TensorFlow 1 did: pixel i is read at i · H/size, edges repeated."""
    for dim in (2, 3):
        length = x.shape[dim]
        at = torch.arange(size, dtype=torch.float32, device=x.device) * (length / size)
        low = at.floor().long().clamp(max=length - 1)
        share = (at - low).reshape([-1 if axis == dim else 1 for axis in range(4)])
        first, second = x.index_select(dim, low), x.index_select(dim, (low + 1).clamp(max=length - 1))
        x = first + share * (second - first)
    return x


class InceptionExtractor(Speechless):
    """Features and logits by Inception-v3 from a local weights file (module text).

    Raises UserError for a file that is neither the state dict nor the TorchScript.
    """

    kind = "inception"
    exclusive = True
    resize = "tf1-bilinear"

    def __init__(self, path: str | Path) -> None:
        file = Path(path)
        if not file.is_file():
            raise UserError(
                f"no Inception weights at {path}: name the file inception-2015-12-05-{REFERENCE}.pth of the "
                "usual port, or the TorchScript inception-2015-12-05.pt"
            )
        self.sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        self.scripted = _is_torchscript(file)
        self.net: nn.Module = torch.jit.load(str(file), map_location="cpu") if self.scripted else _port(file)
        self.net.eval()

    @property
    def name(self) -> str:
        """`inception-v3@6726`."""
        return f"inception-v3@{self.sha256[:4]}"

    @property
    def reference(self) -> bool:
        """Whether these are the weights that published figures stand on."""
        return self.sha256.startswith(REFERENCE)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [n,1 or 3,H,W] (`in_range`) → (features [n,2048], logits [n,1008]) on the CPU."""
        pixels = levels(in_range(images)).expand(-1, 3, -1, -1)
        device = next(chain(self.net.parameters(), self.net.buffers())).device
        parts = [self._forward(part.to(device)) for part in pixels.split(_CHUNK)]
        features, logits = (torch.cat(column).float().cpu() for column in zip(*parts, strict=True))
        return features, logits

    def _forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        if not self.scripted:
            found: tuple[Tensor, Tensor] = self.net(pixels)
            return found
        features = self.net(pixels, return_features=True)
        chances = self.net(pixels, no_output_bias=True)
        return features, chances.clamp(min=1e-30).log()


def _is_torchscript(file: Path) -> bool:
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any("/code/" in name for name in archive.namelist())


def _port(file: Path) -> InceptionV3:
    """The net with the weights of a state dict."""
    net = InceptionV3()
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        net.load_state_dict(state)
    except Exception as error:
        said = str(error).splitlines()[0][:120]
        raise UserError(f"{file} holds no state dict of the Inception-v3 of 2015-12-05: {said}") from error
    return net
