"""Pretrained autoencoders as codecs: frozen, read from local files, identified by their fingerprint.

    z = (E(x) − shift) · scale        the latents' statistics, which give z mean 0 and standard deviation 1

Checkpoints hold their fingerprint instead of their weights, and another autoencoder is refused on loading. An
image has a single latent, the mean if the encoder gives a distribution: training, held-out data and editing
see the same. They work in float32 whatever autocast says.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmsd.errors import UserError
from lmsd.models.codec import Latents, Shape
from lmsd.models.folder import misfit
from lmsd.models.frozen import fingerprint, freeze


class Pretrained(Latents):
    """Base: a frozen autoencoder of images with `colors` channels, `factor` times smaller, `channels` deep.

    scale, shift: of the latents, one number or one per channel; dtype: that it computes in, None: its own.
    Raises UserError for any other count, and for a scale that is not above 0.
    """

    model: Any  # of untyped classes
    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        path: str,
        colors: int,
        channels: int,
        factor: int,
        scale: float | Sequence[float],
        shift: float | Sequence[float],
        dtype: torch.dtype | None = torch.float32,
    ) -> None:
        super().__init__()
        self.path, self.colors, self.channels, self.factor = path, colors, channels, factor
        self.model = model if dtype is None else model.to(dtype)
        self.model.to(memory_format=torch.channels_last)  # a third faster on a CPU
        self.register_buffer("scale", self._per_channel("scale", scale))
        self.register_buffer("shift", self._per_channel("shift", shift))
        if not bool((self.scale > 0).all()):
            raise UserError(f"codec.scale={scale} must be above 0")
        freeze(self, saved=False)
        self.told = {
            "fingerprint": fingerprint(self.model),
            "scale": self.scale.flatten().tolist(),
            "shift": self.shift.flatten().tolist(),
        }

    def _per_channel(self, name: str, value: float | Sequence[float]) -> Tensor:
        found = torch.tensor(value, dtype=torch.float32).flatten()
        if len(found) not in (1, self.channels):
            raise UserError(
                f"codec.{name} has {len(found)} numbers, and {self.path} {self.channels} channels: give one "
                "for all, or one for each"
            )
        return found.view(1, -1, 1, 1)

    def latents(self, x: Tensor) -> Tensor:
        """E(x) of images in [-1,1]."""
        raise NotImplementedError

    def images(self, z: Tensor) -> Tensor:
        """D(z), images in [-1,1] or slightly beyond."""
        raise NotImplementedError

    def encode(self, x: Tensor) -> Tensor:
        """Images → scaled latents."""
        z = (self.latents(x.to(self.scale.dtype)) - self.shift) * self.scale
        return z.to(x.dtype).contiguous()

    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents → images."""
        return self.images(z.to(self.scale.dtype) / self.scale + self.shift).to(z.dtype).contiguous()

    def shape_of(self, image: Shape) -> Shape:
        """(channels, H/factor, W/factor)."""
        if image[0] != self.colors:
            raise UserError(
                f"codec: {self.path} takes images of {self.colors} channels: set data.channels={self.colors}"
            )
        return self.channels, *self.smaller(*image[1:])

    def image_shape_of(self, shape: Shape) -> Shape:
        """(colors, H·factor, W·factor)."""
        return self.colors, shape[1] * self.factor, shape[2] * self.factor

    def train(self, mode: bool = True) -> "Pretrained":
        """Stay in eval mode."""
        return super().train(False)


class _Block(nn.Module):
    """ReLU(x + three convolutions of x); wide: x first gets a branch that sees the whole map by GroupNorm."""

    def __init__(self, width: int, *, wide: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(3):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        self.conv = nn.Sequential(*layers[:-1])
        branch = nn.Sequential(
            nn.Conv2d(width, 4 * width, 1, bias=False),
            nn.GroupNorm(4, 4 * width),
            nn.ReLU(),
            nn.Conv2d(4 * width, width, 1, bias=False),
        )
        self.pool = branch if wide else None

    def forward(self, x: Tensor) -> Tensor:
        """[B,width,H,W] → the same shape."""
        if self.pool is not None:
            x = x + self.pool(x)
        return F.relu(x + self.conv(x))


class _Soft(nn.Module):
    """3 tanh(x/3): values far outside the range of the latents are pulled in."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return 3.0 * torch.tanh(x / 3.0)


def _encoder(width: int, latent: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), _Block(width)]
    for level in range(3):
        layers.append(nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False))
        layers += [_Block(width, wide=level == 2) for _ in range(3)]
    return nn.Sequential(*layers, nn.Conv2d(width, latent, 3, padding=1))


def _decoder(width: int, latent: int) -> nn.Sequential:
    layers: list[nn.Module] = [_Soft(), nn.Conv2d(latent, width, 3, padding=1), nn.ReLU()]
    for level in range(3):
        layers += [_Block(width, wide=level == 0) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)]
    return nn.Sequential(*layers, _Block(width), nn.Conv2d(width, 3, 3, padding=1))


class TAEF2(Pretrained):
    """The tiny autoencoder of the FLUX.2 latents (Bohan): 32 channels, 8 times smaller.

    path: a folder with taef2_encoder and taef2_decoder, .pth or .safetensors, or one file with both, with
    names that begin with encoder. and decoder.; scale, shift: z = (E(x) − shift) · scale, one number or one
    per channel. E(x) has a standard deviation of 0.7 to 0.9. Raises UserError for files with other layers.
    """

    def __init__(
        self, path: str | Path, *, scale: float | Sequence[float] = 1.0, shift: float | Sequence[float] = 0.0
    ) -> None:
        model = nn.ModuleDict({"encoder": _encoder(64, 32), "decoder": _decoder(64, 32)})
        try:
            model.load_state_dict(_both(Path(path)))
        except RuntimeError as error:
            said = str(error).splitlines()[-1].strip()
            raise UserError(f"codec.path={path} does not hold the layers of taef2: {said[:200]}") from error
        super().__init__(model, path=str(path), colors=3, channels=32, factor=8, scale=scale, shift=shift)

    def latents(self, x: Tensor) -> Tensor:
        """E of images, which it takes in [0, 1]."""
        found: Tensor = self.model["encoder"]((x + 1.0) / 2.0)
        return found

    def images(self, z: Tensor) -> Tensor:
        """D of latents, which it gives in [0, 1]."""
        found: Tensor = self.model["decoder"](z)
        return 2.0 * found - 1.0


_SUFFIXES = (".pth", ".safetensors")


def _both(path: Path) -> dict[str, Tensor]:
    """The weights of both halves, with names that begin with encoder. and decoder."""
    if not path.is_dir():
        return _read(path)
    state: dict[str, Tensor] = {}
    for half in ("encoder", "decoder"):
        named = [path / f"taef2_{half}{suffix}" for suffix in _SUFFIXES]
        found = next((file for file in named if file.is_file()), None)
        if found is None:
            raise UserError(f"codec.path={path} holds neither {named[0].name} nor {named[1].name}")
        state |= {f"{half}.{name}": value for name, value in _read(found).items()}
    return state


def _read(file: Path) -> dict[str, Tensor]:
    """The tensors of one file, which cannot run code."""
    if file.suffix not in _SUFFIXES or not file.is_file():
        raise UserError(f"codec.path={file} is no folder and no file of weights, {' or '.join(_SUFFIXES)}")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        return dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:  # a damaged file makes its reader raise all kinds of errors
        raise UserError(f"codec: {file} cannot be read as weights: {type(error).__name__}") from error


class Autoencoder(Pretrained):
    """An AutoencoderKL of diffusers from a local folder: config.json and diffusion_pytorch_model.safetensors.

    path: the folder; scale, shift: z = (E(x) − shift) · scale, one number or one per channel; None: the
    folder's scaling_factor and shift_factor. Raises UserError for any other folder, and for pickled weights.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        scale: float | Sequence[float] | None = None,
        shift: float | Sequence[float] | None = None,
    ) -> None:
        model = _autoencoder(Path(path))
        config = model.config
        super().__init__(
            model,
            path=str(path),
            colors=int(config.in_channels),
            channels=int(config.latent_channels),
            factor=2 ** (len(config.block_out_channels) - 1),
            scale=config.scaling_factor if scale is None else scale,
            shift=(config.shift_factor or 0.0) if shift is None else shift,
        )

    def latents(self, x: Tensor) -> Tensor:
        """The mean of E(x)."""
        return self.model.encode(x).latent_dist.mode()  # type: ignore[no-any-return]

    def images(self, z: Tensor) -> Tensor:
        """D(z)."""
        return self.model.decode(z).sample  # type: ignore[no-any-return]


def _autoencoder(path: Path) -> Any:
    """The model in a folder, with every one of its weights."""
    try:
        card = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"codec.path={path}: its config.json is not there or cannot be read") from error
    kind = card.get("_class_name")
    if kind != "AutoencoderKL":
        raise UserError(f"codec.path={path} holds a {kind} and no AutoencoderKL; a pipeline's lies in vae/")
    if not (path / "diffusion_pytorch_model.safetensors").is_file():
        raise UserError(
            f"codec.path={path} holds no diffusion_pytorch_model.safetensors; pickles are not read"
        )
    from diffusers import AutoencoderKL

    model, told = AutoencoderKL.from_pretrained(
        str(path),
        output_loading_info=True,
        local_files_only=True,
        use_safetensors=True,
        low_cpu_mem_usage=False,
    )
    if strange := misfit(told):
        raise UserError(f"codec.path={path}: its weights do not fit its config.json, see {strange}")
    return model
