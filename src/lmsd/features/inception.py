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
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmsd.errors import UserError
from lmsd.features.base import in_range
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
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """[B,channels,H,W] → [B,width,H',W']."""
        return F.relu(self.bn(self.conv(x)))


class _Block(nn.Module):
    """Parallel branches; a branch is a chain of names of convolutions, those of a tuple side by side.

    pool: what comes before `branch_pool`, or, without one, is a branch itself at stride 2.
    """

    chains: tuple[tuple[str | tuple[str, str], ...], ...] = ()
    pool = "average"
    branch_pool: BasicConv2d

    def forward(self, x: Tensor) -> Tensor:
        """Every branch of x, joined along the channels."""
        return torch.cat([*(self._chain(x, chain) for chain in self.chains), self._pooled(x)], dim=1)

    def _chain(self, x: Tensor, chain: tuple[str | tuple[str, str], ...]) -> Tensor:
        for link in chain:
            names = (link,) if isinstance(link, str) else link
            x = torch.cat([getattr(self, name)(x) for name in names], dim=1)
        return x

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pool == "stride":
            return F.max_pool2d(x, 3, stride=2)
        if self.pool == "maximum":
            pooled = F.max_pool2d(x, 3, stride=1, padding=1)
        else:
            pooled = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        out: Tensor = self.branch_pool(pooled)
        return out


class _A(_Block):
    chains = (
        ("branch1x1",),
        ("branch5x5_1", "branch5x5_2"),
        ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
    )

    def __init__(self, channels: int, pool_width: int) -> None:
        super().__init__()
        self.branch1x1 = BasicConv2d(channels, 64)
        self.branch5x5_1 = BasicConv2d(channels, 48)
        self.branch5x5_2 = BasicConv2d(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = BasicConv2d(channels, 64)
        self.branch3x3dbl_2 = BasicConv2d(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = BasicConv2d(96, 96, 3, padding=1)
        self.branch_pool = BasicConv2d(channels, pool_width)


class _B(_Block):
    chains = (("branch3x3",), ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"))
    pool = "stride"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3 = BasicConv2d(channels, 384, 3, stride=2)
        self.branch3x3dbl_1 = BasicConv2d(channels, 64)
        self.branch3x3dbl_2 = BasicConv2d(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = BasicConv2d(96, 96, 3, stride=2)


class _C(_Block):
    chains = (
        ("branch1x1",),
        ("branch7x7_1", "branch7x7_2", "branch7x7_3"),
        ("branch7x7dbl_1", "branch7x7dbl_2", "branch7x7dbl_3", "branch7x7dbl_4", "branch7x7dbl_5"),
    )

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        row, column = {"kernel": (1, 7), "padding": (0, 3)}, {"kernel": (7, 1), "padding": (3, 0)}
        self.branch1x1 = BasicConv2d(channels, 192)
        self.branch7x7_1 = BasicConv2d(channels, width)
        self.branch7x7_2 = BasicConv2d(width, width, **row)  # type: ignore[arg-type]
        self.branch7x7_3 = BasicConv2d(width, 192, **column)  # type: ignore[arg-type]
        self.branch7x7dbl_1 = BasicConv2d(channels, width)
        self.branch7x7dbl_2 = BasicConv2d(width, width, **column)  # type: ignore[arg-type]
        self.branch7x7dbl_3 = BasicConv2d(width, width, **row)  # type: ignore[arg-type]
        self.branch7x7dbl_4 = BasicConv2d(width, width, **column)  # type: ignore[arg-type]
        self.branch7x7dbl_5 = BasicConv2d(width, 192, **row)  # type: ignore[arg-type]
        self.branch_pool = BasicConv2d(channels, 192)


class _D(_Block):
    chains = (
        ("branch3x3_1", "branch3x3_2"),
        ("branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3", "branch7x7x3_4"),
    )
    pool = "stride"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3_1 = BasicConv2d(channels, 192)
        self.branch3x3_2 = BasicConv2d(192, 320, 3, stride=2)
        self.branch7x7x3_1 = BasicConv2d(channels, 192)
        self.branch7x7x3_2 = BasicConv2d(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = BasicConv2d(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = BasicConv2d(192, 192, 3, stride=2)


class _E(_Block):
    chains = (
        ("branch1x1",),
        ("branch3x3_1", ("branch3x3_2a", "branch3x3_2b")),
        ("branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")),
    )

    def __init__(self, channels: int, pool: str) -> None:
        super().__init__()
        self.pool = pool
        self.branch1x1 = BasicConv2d(channels, 320)
        self.branch3x3_1 = BasicConv2d(channels, 384)
        self.branch3x3_2a = BasicConv2d(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = BasicConv2d(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = BasicConv2d(channels, 448)
        self.branch3x3dbl_2 = BasicConv2d(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = BasicConv2d(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = BasicConv2d(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = BasicConv2d(channels, 192)


class InceptionV3(nn.Module):
    """The net (module text); its state dict's names are those of the usual port."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = BasicConv2d(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = BasicConv2d(32, 32, 3)
        self.Conv2d_2b_3x3 = BasicConv2d(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = BasicConv2d(64, 80)
        self.Conv2d_4a_3x3 = BasicConv2d(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _A(192, 32), _A(256, 64), _A(288, 64)
        self.Mixed_6a = _B(288)
        self.Mixed_6b, self.Mixed_6c = _C(768, 128), _C(768, 160)
        self.Mixed_6d, self.Mixed_6e = _C(768, 160), _C(768, 192)
        self.Mixed_7a = _D(768)
        self.Mixed_7b, self.Mixed_7c = _E(1280, "average"), _E(2048, "maximum")
        self.fc = nn.Linear(2048, 1008)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [n,3,H,W] → (features [n,2048], logits without bias [n,1008])."""
        x = (tf1_bilinear(pixels.float(), SIZE) - 128.0) / 128.0
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
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


class InceptionExtractor:
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

    def right(self, logits: Tensor, labels: Tensor | None, captions: Sequence[str] | None) -> None:
        """Its classes are those of another data set."""

    def texts(self, captions: Sequence[str]) -> None:
        """It reads no texts."""

    def cut(self, captions: Sequence[str]) -> int:
        """None: it reads no texts."""
        return 0


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
