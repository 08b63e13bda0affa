"""The autoencoder that one trains oneself: diffusers' AutoencoderKL in a size that a laptop can train.

    training     E(x) = (μ, log σ²),  z = μ + σ ε or μ,  x̂ = D(z)        `objectives.autoencoding`
    afterwards   codec=trained codec.path=RUN: frozen, z = (μ − shift) · scale with measured statistics

A run of it is a folder of diffusers' own (`save`), which any of its pipelines and codec=autoencoder read.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmsd.checkpoints import KEY, averages, find, folder_of, put, read, spec_of, weights
from lmsd.errors import Count, UserError
from lmsd.models.autoencoder import FolderCodec
from lmsd.models.codec import Latents, Shape
from lmsd.spec import build


class OwnAutoencoder(Latents):
    """Images ↔ latents, 2^(levels − 1) times smaller.

    widths: channels of each level; latent_channels: of the latents; blocks: residual blocks of a level;
    shape: (C, H, W) of the images, as the run gives it. Raises UserError for sides that do not divide.
    """

    model: Any  # of an untyped class

    def __init__(
        self,
        shape: Shape,
        *,
        widths: Sequence[Count] = (32, 64, 64),
        latent_channels: Count = 4,
        blocks: Count = 1,
    ) -> None:
        from diffusers import AutoencoderKL

        super().__init__()
        self.shape, self.channels = tuple(shape), latent_channels
        self.factor = 2 ** (len(widths) - 1)
        self.smaller(*shape[1:])
        # a group of few channels would lose the brightness of the image
        groups = next(n for n in (32, 16, 8, 4, 2, 1) if n == 1 or _fits(n, widths))
        self.model = AutoencoderKL(
            in_channels=shape[0],
            out_channels=shape[0],
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            block_out_channels=tuple(widths),
            layers_per_block=blocks,
            latent_channels=latent_channels,
            norm_num_groups=groups,
            sample_size=shape[1],
            scaling_factor=1.0,
            mid_block_add_attention=False,
        )

    def spread(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """μ and log σ² of E(x)."""
        found = self.model.encode(x).latent_dist
        return found.mean, found.logvar

    def encode(self, x: Tensor) -> Tensor:
        """μ of E(x)."""
        return self.spread(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        """D(z), not clamped."""
        return self.model.decode(z).sample  # type: ignore[no-any-return]

    def shape_of(self, image: Shape) -> Shape:
        """(channels, H/f, W/f)."""
        return self.channels, *self.smaller(*image[1:])

    def image_shape_of(self, shape: Shape) -> Shape:
        """(colors, H·f, W·f)."""
        return int(self.shape[0]), shape[1] * self.factor, shape[2] * self.factor


def _fits(groups: int, widths: Sequence[int]) -> bool:
    return all(width % groups == 0 and width // groups >= 8 for width in widths)


class TrainedAutoencoder(FolderCodec):
    """The autoencoder of a run of `objective=autoencoder`, frozen.

    path: the run's folder or one of its checkpoints, whose first average is read, or the raw weights where it
    keeps none; statistics: the file that `lmsd data statistics` wrote, None for latents.json in the run's
    folder, if it is there. Raises UserError for a run of something else.
    """

    def __init__(self, path: str | Path, *, statistics: str | Path | None = None) -> None:
        content = read(find(Path(path)))
        own = build(spec_of(content))
        if type(own) is not OwnAutoencoder:
            raise UserError(f"codec.path={path} is a run of a {type(own).__name__}, not of an autoencoder")
        half_life = "ema" if averages(content, "codec") else None
        lacking = put(own, weights(content, "codec", half_life)).missing
        if lacking:
            raise UserError(f"codec.path={path} lacks {lacking[0]}: its spec is of another net")
        self.kept = folder_of(Path(path)) / "latents.json"
        if statistics is None and self.kept.is_file():
            statistics = self.kept
        given: dict[str, Any] = {"path": str(path), "statistics": statistics, "dtype": None}
        super().__init__(own.model, dict(own.model.config), **given)
        features = content[KEY]["objective"].get("features")
        if features:
            self.told = {**self.told, "features": features}


def save(codec: FolderCodec, folder: Path, *, probe: Shape = (3, 32, 32)) -> float:
    """Write an AutoencoderKL with its statistics as a folder of diffusers; the largest difference of latents.

    The folder is read back, and its latents of a random image compared. Raises UserError if they differ.
    """
    from lmsd.models.autoencoder import Autoencoder

    model: nn.Module = codec.model
    channels = codec.channels
    mean, scale = (value.flatten().expand(channels).tolist() for value in (codec.shift, codec.scale))
    # a name in _use_default_values would be given its default
    own = {name: value for name, value in codec.model.config.items() if not name.startswith("_")}
    own |= {"latents_mean": mean, "latents_std": [1 / each for each in scale]}
    written = type(codec.model).from_config(own)
    written.load_state_dict(model.state_dict() or dict(model.named_buffers()))
    written.save_pretrained(str(folder), safe_serialization=True)
    x = torch.rand(1, codec.colors, *probe[1:], generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        one, other = codec.encode(x), Autoencoder(folder).encode(x)
    apart = float((one - other).abs().max())
    if apart > 1e-4 * max(1.0, float(one.abs().max())):
        raise UserError(f"{folder}: read back, its latents differ by {apart:.2g}")
    return apart
