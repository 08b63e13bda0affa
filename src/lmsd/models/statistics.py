"""Statistics of latents, channel by channel: measured once, kept in a file, checked on the data of every run.

    m_c = E[E(x)_c],  s_c = √Var[E(x)_c]            over images and places, in float64
    shift = m,  scale = 1/s                         so that z = (E(x) − shift) · scale has mean 0 and std 1

Diffusion assumes data of unit variance: schedules, times and loss weights are chosen for it. Latents at
another scale train without an error, and badly.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lmsd.errors import UserError
from lmsd.files import write_text
from lmsd.models.codec import Codec

MEAN, STD = 0.1, (0.9, 1.1)
"""How far the mean may lie from 0, and the standard deviation from 1."""
WAY = "`lmsd data statistics` with the words of this run measures them and says how they are used"


@dataclass(frozen=True)
class Statistics:
    """scale, shift: one number a channel; images: that they come from; fingerprint: of the codec."""

    scale: tuple[float, ...]
    shift: tuple[float, ...]
    images: int
    fingerprint: str

    def save(self, path: Path) -> None:
        """Write them as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(vars(self), indent=1) + "\n")


def statistics_at(path: str | Path, fingerprint: str) -> Statistics:
    """Those of a file. Raises UserError if it is none, or belongs to another codec."""
    try:
        found = Statistics(**json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"codec.statistics={path} is not there, or holds no statistics; {WAY}") from error
    if found.fingerprint != fingerprint:
        raise UserError(
            f"codec.statistics={path} was measured with codec {found.fingerprint}, and this is "
            f"{fingerprint}; {WAY}"
        )
    return found


@torch.no_grad()
def measured(codec: Codec, batches: Iterable[Tensor], fingerprint: str) -> Statistics:
    """The statistics of a codec's latents E(x) on batches of images [B,C,H,W].

    Raises UserError for a channel that never varies.
    """
    count, images, total, squares = 0, 0, torch.zeros(()), torch.zeros(())
    for x in batches:
        z = codec.raw(x)[0].double().transpose(0, 1).flatten(1).cpu()
        total, squares = total + z.sum(1), squares + z.square().sum(1)
        count, images = count + z.shape[1], images + len(x)
    mean = total / max(count, 1)
    std = (squares / max(count, 1) - mean.square()).clamp(min=0).sqrt()
    if not count or not bool((std > 1e-6).all()):
        raise UserError(f"codec: a channel of the latents does not vary on {images} images: is it trained?")
    return Statistics(tuple((1 / std).tolist()), tuple(mean.tolist()), images, fingerprint)


def check(z: Tensor) -> None:
    """Refuse scaled latents [B,C,H,W] of training images that are off, beyond what so few images explain."""
    z = z.double().cpu()
    each = z.flatten(2).mean(2)
    doubt = 3.0 * each.std(0, correction=1) / len(z) ** 0.5 if len(z) > 1 else torch.zeros(z.shape[1])
    mean, std = each.mean(0), z.transpose(0, 1).flatten(1).std(1)
    off = (mean.abs() > MEAN + doubt) | (std < STD[0] - doubt) | (std > STD[1] + doubt)
    if bool(off.any()):
        worst = int((mean.abs() + (std - 1).abs()).masked_fill(~off, -1).argmax())
        raise UserError(
            f"codec: on {len(z)} training images {int(off.sum())} of {z.shape[1]} channels of the latents "
            f"are off (channel {worst}: mean {mean[worst]:.2f}, standard deviation {std[worst]:.2f}; they "
            f"should be 0 and 1); {WAY}"
        )
