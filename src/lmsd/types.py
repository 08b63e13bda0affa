"""The types that the packages exchange.

Shape legend, used in every docstring: B batch, C channels, H W image, L tokens, D width, K sampling steps.
Images are float32 in [-1, 1]. Times are float32 of shape [B]; 's' is the cleaner end of a jump t → s.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

Prediction: TypeAlias = Literal["eps", "x0", "v", "velocity"]
"""What a net predicts: ε; x₀; v = α ε − σ x₀ (α² + σ² = 1); the flow velocity ε − x₀."""

Players: TypeAlias = Mapping[str, nn.Module]
"""The nets of a method by role: "generator", "discriminator", and any other name an objective lists."""

Denoise: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(x_t [B,C,H,W], t [B]) → x̂₀ [B,C,H,W]: all that a sampler knows about a generator."""

Progress: TypeAlias = Callable[[int, int, str], None]
"""(done, total, what) → None: called as work progresses; only `cli` draws it."""


def at_least_float32(x: Tensor) -> Tensor:
    """The same numbers in float32, or in float64 if they already are: half precision has too few digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def levels(x: Tensor) -> Tensor:
    """Images in [-1,1], clamped to it, as the nearest of 256 levels: uint8 of the same shape."""
    return x.detach().float().clamp(-1.0, 1.0).add_(1.0).mul_(127.5).round_().to(torch.uint8)


def scale(u: Tensor) -> Tensor:
    """The inverse of `levels`: x = u · (1/127.5) − 1, float32; as `data.transforms.scale` rounds it."""
    return u.float().mul_(2 / 255).sub_(1.0)


@dataclass(frozen=True)
class Batch:
    """One batch as `data` delivers it.

    x: images [B,C,H,W] in [-1,1]; position: each sample's place in the endless stream, int64 [B]; text: B
    captions; label: class indices, int64 [B]; extra: further tensors with leading dimension B, those of four
    dimensions pictures like x. encoded: x is what a codec makes of images (its E(x), unscaled), read from a
    cache; spread: and its standard deviation, where latents are drawn.
    """

    x: Tensor
    position: Tensor
    text: list[str] | None = None
    label: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    encoded: bool = False
    spread: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def to(self, device: object) -> "Batch":
        """The same batch with every tensor on `device`."""

        def move(value: Tensor) -> Tensor:
            return value.to(device, non_blocking=True)  # type: ignore[call-overload, no-any-return]

        return replace(
            self,
            x=move(self.x),
            position=move(self.position),
            label=None if self.label is None else move(self.label),
            extra={name: move(value) for name, value in self.extra.items()},
            spread=None if self.spread is None else move(self.spread),
        )

    def split(self, pieces: int) -> "list[Batch]":
        """Equal pieces along the samples; B is a multiple of their number."""
        if pieces == 1:
            return [self]
        size = len(self) // pieces
        return [self.rows(slice(i * size, (i + 1) * size)) for i in range(pieces)]

    def rows(self, index: slice | Tensor) -> "Batch":
        """Some of the samples: a slice, or int64 [n] in any order, repetitions allowed."""
        places = range(len(self))[index] if isinstance(index, slice) else index.tolist()
        return Batch(
            x=self.x[index],
            position=self.position[index],
            text=None if self.text is None else [self.text[place] for place in places],
            label=None if self.label is None else self.label[index],
            extra={name: value[index] for name, value in self.extra.items()},
            encoded=self.encoded,
            spread=None if self.spread is None else self.spread[index],
        )


@dataclass(frozen=True)
class Cond:
    """What a net is conditioned on.

    tokens [B,L,D] with mask [B,L] (True: a real token); pooled [B,D]; label int64 [B]; image [B,C',H,W].
    """

    tokens: Tensor | None = None
    mask: Tensor | None = None
    pooled: Tensor | None = None
    label: Tensor | None = None
    image: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> "Cond":
        """Apply `function` to every tensor that is not None (index rows, repeat, detach, roll)."""
        return Cond(**{name: function(value) for name, value in vars(self).items() if value is not None})

    def detach(self) -> "Cond":
        """The same condition, cut from the graph."""
        return self.map(lambda value: value.detach())


@dataclass(frozen=True)
class Sizes:
    """What the data, the codec and the conditioner decide for a net.

    channels, image_size: C and H = W of what it denoises; token_dim, pooled_dim, z_dim: widths of the text
    tokens, of the pooled condition and of the latent noise, image_dim: channels of an image that it sees, 0
    if there are none.
    """

    channels: int
    image_size: int
    token_dim: int = 0
    pooled_dim: int = 0
    z_dim: int = 0
    image_dim: int = 0


@runtime_checkable
class Net(Protocol):
    """What a generator needs of its net: f(x [B,C,H,W], τ [B], cond, z [B,z_dim] | None) → like x.

    channels, image_size: C and H = W of what it denoises; token_dim, pooled_dim, z_dim: widths of the text
    tokens, the pooled condition and the latent noise that it takes, 0 for what it does not take.
    """

    channels: int
    image_size: int
    token_dim: int
    pooled_dim: int
    z_dim: int

    def __call__(self, x: Tensor, time: Tensor, cond: Cond, z: Tensor | None = None) -> Tensor:
        """What the net predicts."""
        ...


@runtime_checkable
class Seeing(Protocol):
    """A net that sees an image beside x: Cond.image [B,image_dim,H,W]."""

    image_dim: int


@runtime_checkable
class Recomputing(Protocol):
    """A net that can trade computation for memory."""

    def enable_gradient_checkpointing(self) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations."""


@dataclass(frozen=True)
class Loss:
    """A scalar to minimize, with detached scalars on the same device for the logs."""

    value: Tensor
    logs: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Turn:
    """One optimizer update of one player; `loss` is called with gradients on for that player alone.

    rate: factor on the learning rate of this update, for methods with phases; decided by the clock. restart:
    players that begin a phase before this update, with their averaged weights, if there is an EMA, and a
    fresh optimizer state.
    """

    player: str
    loss: Callable[[], Loss]
    rate: float = 1.0
    restart: tuple[str, ...] = ()


@dataclass
class Clock:
    """How far a run has come, in images and updates; the same on every rank.

    Lightning's `global_step` counts optimizer steps. Schedules, cadences, EMA half-lives, names of
    checkpoints and x-axes here count images, which mean the same for any batch size, number of ranks and of
    D's turns.

    total_images: length of the run; lead: the player that leads; images: seen by all ranks together; played:
    updates of every player, skipped ones included; reached: the progress of the run that this one extends, 0
    if it extends none; start, share: the phase of the run that progress refers to.
    """

    total_images: int
    lead: str
    images: int = 0
    played: dict[str, int] = field(default_factory=dict)
    reached: float = 0.0
    start: float = 0.0
    share: float = 1.0

    @property
    def updates(self) -> int:
        """Updates of the lead."""
        return self.played.get(self.lead, 0)

    @property
    def progress(self) -> float:
        """Completed share of the phase, of the whole run by default; in [0, 1]."""
        return max(0.0, min(1.0, self.images / self.total_images) - self.start) / self.share

    @property
    def furthest(self) -> float:
        """The progress that decides when phases begin: that of the run which this one extends, if greater."""
        return (max(min(1.0, self.images / self.total_images), self.reached) - self.start) / self.share

    @property
    def done(self) -> bool:
        """Whether all images have been seen."""
        return self.images >= self.total_images

    def crossed(self, before: int, every: int) -> bool:
        """Whether a multiple of `every` lies in (before, images]; never for every = 0."""
        return every > 0 and self.images // every > before // every

    def count(self, player: str) -> None:
        """Count one more update of a player."""
        self.played[player] = self.played.get(player, 0) + 1

    def state_dict(self) -> dict[str, Any]:
        """What has been counted; the total comes from the configuration."""
        counts = {"images": self.images, "updates": self.updates, "played": dict(self.played)}
        return counts | ({"reached": self.reached} if self.reached else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.images, self.played = int(state["images"]), dict(state["played"])
        self.reached = float(state.get("reached", 0.0))


@dataclass(frozen=True)
class Trajectory:
    """A sampled path, float32 or float64.

    x [B,K+1,...] from noise to image; steps: the n of its K transitions that are random and learned from;
    mean [B,n,...], std (n numbers) and log_prob [B,n], in nats: of these.
    """

    x: Tensor
    steps: tuple[int, ...]
    mean: Tensor
    std: tuple[float, ...]
    log_prob: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, index: Tensor) -> "Trajectory":
        """The paths of some samples."""
        return replace(self, x=self.x[index], mean=self.mean[index], log_prob=self.log_prob[index])

    @property
    def images(self) -> Tensor:
        """The ends of the paths, [B,...], not clamped."""
        return self.x[:, -1]
