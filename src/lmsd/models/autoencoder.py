"""Pretrained autoencoders as codecs: frozen, read from local files, identified by their fingerprint.

    z = (E(x) − shift) · scale        the latents' statistics, which give z mean 0 and standard deviation 1

Checkpoints hold their fingerprint instead of their weights, and another autoencoder is refused on loading. An
image has a single latent, the mean if the encoder gives a distribution; only training may draw it, by
position. They work in float32 whatever autocast says.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmsd.errors import Amount, UserError, one_of
from lmsd.models.codec import Latents, Shape
from lmsd.models.folder import class_of, component_of, finite, json_of
from lmsd.models.frozen import digest, fingerprint, freeze
from lmsd.models.statistics import statistics_at
from lmsd.models.tiles import Tiled

Posterior: TypeAlias = Literal["mean", "drawn"]


class Pretrained(Latents):
    """Base: a frozen autoencoder of images with `colors` channels, `factor` times smaller, `channels` deep.

    scale, shift: of the latents, one number or one per channel; statistics: a file that has both, in their
    place; dtype: that it computes in, None: its own. kept: where statistics lie by default. Raises UserError
    for any other count, for a scale that is not above 0, and for statistics of another codec.
    """

    model: Any  # of untyped classes
    checked = True
    posterior: Posterior = "mean"
    kept: Path | None = None
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
        statistics: str | Path | None = None,
        dtype: torch.dtype | None = torch.float32,
    ) -> None:
        super().__init__()
        self.path, self.colors, self.channels, self.factor = path, colors, channels, factor
        self.model = freeze(model, saved=False)
        if dtype is not None:
            self.model.to(dtype)
        self.model.to(memory_format=torch.channels_last)  # a third faster on a CPU
        self.fingerprint = fingerprint(self.model)
        if statistics is not None:
            found = statistics_at(statistics, self.fingerprint)
            scale, shift = found.scale, found.shift
        self.register_buffer("scale", self._per_channel("scale", scale))
        self.register_buffer("shift", self._per_channel("shift", shift))
        if not bool((self.scale > 0).all()):
            raise UserError(f"codec.scale={scale} must be above 0")
        freeze(self, saved=False)
        self.told = {
            "fingerprint": self.fingerprint,
            "scale": self.scale.flatten().tolist(),
            "shift": self.shift.flatten().tolist(),
        }

    @cached_property
    def digest(self) -> str:
        """The sha256 of all weights, for what is kept of its latents."""
        return digest(self.model)

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

    def raw(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """E(x), which is not scaled."""
        return self.latents(x.to(self.scale.dtype)), None

    def scaled(self, z: Tensor) -> Tensor:
        """(E(x) − shift) · scale."""
        return ((z.to(self.scale.dtype) - self.shift) * self.scale).contiguous()

    def encode(self, x: Tensor) -> Tensor:
        """Images → scaled latents, the mean where there is a distribution."""
        return self.scaled(self.raw(x)[0]).to(x.dtype)

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
    per channel; statistics: a file that has both. E(x) has a standard deviation of 0.7 to 0.9. There are no
    tiles: a branch of its deepest blocks normalizes over the whole image. Raises UserError for files with
    other layers.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        scale: float | Sequence[float] = 1.0,
        shift: float | Sequence[float] = 0.0,
        statistics: str | Path | None = None,
    ) -> None:
        model = nn.ModuleDict({"encoder": _encoder(64, 32), "decoder": _decoder(64, 32)})
        try:
            model.load_state_dict(_both(Path(path)))
        except RuntimeError as error:
            said = str(error).splitlines()[-1].strip()
            raise UserError(f"codec.path={path} does not hold the layers of taef2: {said[:200]}") from error
        given: dict[str, Any] = {"scale": scale, "shift": shift, "statistics": statistics}
        super().__init__(model, path=str(path), colors=3, channels=32, factor=8, **given)

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


class FolderCodec(Pretrained):
    """Base: an autoencoder of diffusers, with the numbers of its config.json.

    config: that file's; scale, shift: None for its own, also where it has one per channel; dtype: None: the
    model's.
    """

    def __init__(
        self,
        model: nn.Module,
        config: Mapping[str, Any],
        *,
        path: str,
        scale: float | Sequence[float] | None = None,
        shift: float | Sequence[float] | None = None,
        statistics: str | Path | None = None,
        dtype: torch.dtype | None = torch.float32,
    ) -> None:
        widths = config.get("block_out_channels") or config["encoder_block_out_channels"]
        own_scale, own_shift = float(config.get("scaling_factor", 1.0)), config.get("shift_factor") or 0.0
        if config.get("latents_mean") and config.get("latents_std"):
            own_shift = [float(value) for value in config["latents_mean"]]
            own_scale = [own_scale / float(value) for value in config["latents_std"]]  # type: ignore[assignment]
        super().__init__(
            model,
            path=path,
            colors=int(config.get("in_channels", 3)),
            channels=int(config["latent_channels"]),
            factor=2 ** (len(widths) - 1),
            scale=own_scale if scale is None else scale,
            shift=own_shift if shift is None else shift,
            statistics=statistics,
            dtype=dtype,
        )

    def raw(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The mean and the standard deviation of E(x), or E(x) itself where it is no distribution."""
        found = self.model.encode(x)
        if "latent_dist" in found:
            return found["latent_dist"].mode(), found["latent_dist"].std
        return found["latents" if "latents" in found else "latent"], None

    def latents(self, x: Tensor) -> Tensor:
        """The mean of E(x), or E(x) itself where it is no distribution."""
        return self.raw(x)[0]

    def images(self, z: Tensor) -> Tensor:
        """D(z)."""
        found: Tensor = self.model.decode(z, return_dict=False)[0]
        return found


KINDS = ("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC")
"""The classes that codec=autoencoder reads."""


class Autoencoder(FolderCodec):
    """An AutoencoderKL, AutoencoderTiny or AutoencoderDC of diffusers from local files.

    path: a folder with config.json and safetensors, or a .safetensors file with config.json beside it; scale,
    shift: z = (E(x) − shift) · scale, one number or one per channel, None: the folder's own; statistics: a
    file that has both; posterior: an image's latent is the mean of an AutoencoderKL's distribution, or drawn
    from it in training, by position; tile: side in pixels of the tiles that larger images are decoded in, 0
    for none: less memory, three times the time (`models.tiles`). Raises UserError for any other file, for
    weights that are missing, left over or pickled, and for tiles of another kind than AutoencoderKL.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        scale: float | Sequence[float] | None = None,
        shift: float | Sequence[float] | None = None,
        statistics: str | Path | None = None,
        posterior: Posterior = "mean",
        tile: Amount = 0,
    ) -> None:
        one_of("codec", "posterior", posterior, Posterior)
        kind, config, model = _opened(Path(path))
        given: dict[str, Any] = {"scale": scale, "shift": shift, "statistics": statistics, "dtype": None}
        super().__init__(model, config, path=str(path), **given)
        self.posterior = posterior
        if posterior == "drawn":
            if kind != "AutoencoderKL":
                raise UserError(
                    f"codec.posterior=drawn: {path} is an {kind}, with no distribution of latents"
                )
            self.told = {**self.told, "posterior": posterior}
        self._tile = self._checked(kind, tile) // self.factor

    def _checked(self, kind: str, tile: int) -> int:
        if tile and kind != "AutoencoderKL":
            why = "whose attention sees the whole image" if kind == "AutoencoderDC" else "which needs none"
            raise UserError(f"codec.tile={tile}: {self.path} is an {kind}, {why}: leave it out")
        if tile % (4 * self.factor):
            raise UserError(f"codec.tile={tile} must be a multiple of {4 * self.factor}, four latents a side")
        return tile

    def images(self, z: Tensor) -> Tensor:
        """D(z), in tiles if they are asked for."""
        return Tiled(self.model, self._tile)(z) if self._tile else super().images(z)

    def raw(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The mean of E(x), and the standard deviation where latents are drawn."""
        mean, std = super().raw(x.to(self.scale.dtype))
        return mean, std if self.posterior == "drawn" else None


def _opened(path: Path) -> tuple[str, Mapping[str, Any], Any]:
    """Class, configuration and net of a folder, or of a file of weights."""

    def refuse(said: str) -> UserError:
        return UserError(f"codec.path={path}: {said}")

    alone = path.is_file()
    if alone and path.suffix != ".safetensors":
        raise refuse("only safetensors are read; pickles are not read, since they can run code")
    folder = path.parent if alone else path
    config = json_of(folder / "config.json", refuse, name="its config.json")
    kind = str(config.get("_class_name"))
    if kind not in KINDS:
        raise refuse(f"it holds a {kind} and no {', '.join(KINDS)}; a pipeline's lies in vae/")
    if not alone:
        return kind, config, component_of(folder, kind, torch.float32, refuse=refuse)
    model = class_of(kind).from_config(dict(config))
    try:
        told = model.load_state_dict(_read(path), strict=False)
    except RuntimeError as error:  # another shape
        said = str(error).splitlines()[-1].strip()
        raise refuse(f"its weights do not fit config.json: {said[:160]}") from error
    strange = [*told.missing_keys, *told.unexpected_keys]
    if strange:
        raise refuse(f"its weights do not fit config.json, see {strange[0]}")
    return kind, config, finite(model, path.name, refuse)
