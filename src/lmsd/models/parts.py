"""A generator from its parts, each given what it must know of the others.

    codec         image shape → what is diffused (C, H, W)        the net's channels and image_size
    conditioner   widths of its condition                         the net's token_dim and pooled_dim

A net is given, by name, those of them that its constructor takes, or all of them as `sizes`. So the tree that
names the parts and the size of the images is all it takes to rebuild a generator (`lmsd.spec.build`); a
checkpoint holds that tree.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from lmsd.errors import Amount, UserError
from lmsd.models.backbones import LabelTransformer
from lmsd.models.codec import Codec, Identity
from lmsd.models.conditioner import Conditioner, LabelConditioner, NullConditioner
from lmsd.models.generator import Generator, Precondition, Sees
from lmsd.process import Process
from lmsd.process.schedules import Schedule
from lmsd.types import Net, Prediction, Sizes


def from_parts(
    net: Callable[..., Net],
    schedule: Schedule,
    *,
    channels: int,
    image_size: int,
    conditioner: Conditioner | None = None,
    codec: Codec | None = None,
    prediction: Prediction = "v",
    z_dim: Amount = 0,
    precondition: Precondition = "none",
    sigma_data: float = 0.5,
    sees: Sees = "nothing",
) -> Generator:
    """A generator whose net is made to measure; see `Generator`.

    net: its constructor, with all but the sizes bound; channels, image_size: C and H = W of the images;
    prediction: what the net predicts; z_dim: width of the latent noise, 0 for none; precondition: none or
    edm; sigma_data: σ_d; sees: what image it has beside x. Raises UserError if the parts do not fit, or the
    net was given what they decide.
    """
    conditioner = conditioner if conditioner is not None else NullConditioner()
    codec = codec if codec is not None else Identity()
    images = (channels, image_size, image_size)
    built = net(**_sizes(net, codec.shape_of(images), conditioner, z_dim, sees))
    _check_labels(built, conditioner)
    return Generator(
        built,
        Process(schedule),
        conditioner=conditioner,
        codec=codec,
        prediction=prediction,
        z_dim=z_dim,
        precondition=precondition,
        sigma_data=sigma_data,
        sees=sees,
    )


def nothing() -> None:
    """No generator, for an objective that trains something else."""


def _sizes(
    net: Callable[..., Net], shape: Sequence[int], conditioner: Conditioner, z_dim: int, sees: str
) -> dict[str, Any]:
    """The sizes that a net's constructor takes; shape: (C, H, W) of what is diffused."""
    depth, side, _ = shape
    image_dim = {"nothing": 0, "source": depth, "masked": depth + 1}.get(sees, 0)
    sizes = Sizes(depth, side, conditioner.token_dim, conditioner.pooled_dim, z_dim, image_dim)
    given: dict[str, Any] = {"sizes": sizes, **vars(sizes)}
    for name in net.keywords.keys() & given.keys() if isinstance(net, partial) else ():
        raise UserError(f"net.{name} follows from the data, the codec and the conditioner: leave it out")
    parameters = inspect.signature(net).parameters
    return {name: value for name, value in given.items() if name in parameters}


def _check_labels(net: Net, conditioner: Conditioner) -> None:
    """Refuse a net of class labels if there are none, or another number of them."""
    if not isinstance(net, LabelTransformer):
        return
    if not isinstance(conditioner, LabelConditioner):
        raise UserError(
            "net=dit_label reads class labels only: add conditioner=label generator.z_dim=0, or take "
            "net=transformer_text for captions"
        )
    if conditioner.classes != net.classes:
        raise UserError(
            f"net.classes={net.classes} and conditioner.classes={conditioner.classes}: make them equal"
        )
