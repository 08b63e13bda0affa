"""What a layout says: how captions become codes, and what a net is called with, for one family of pipelines.

    codes      captions → tokens [U,L,D], mask [U,L], pooled [U,D]
    inputs     x_t, τ, condition → the net's own arguments
    output     what the net returns → a prediction like x_t

Layouts hold no weights. Numbers come from the folder's configurations; what stands here are choices that a
family's pipeline makes in code.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lmsd.models.frozen import freeze, weights_of
from lmsd.models.words import HubSpeller
from lmsd.types import Cond

CLIP = ("CLIPTextModel",)
CLIP_PROJECTED = ("CLIPTextModelWithProjection",)
T5 = ("T5EncoderModel",)


@dataclass(frozen=True)
class Facts:
    """What a layout is told of its folder and its use.

    net: the net's config; index: model_index.json; image_size: H = W of the images; side: of what is
    diffused; guidance: what nets with a guidance input are told; instructed: whether captions get the
    family's instruction.
    """

    net: Mapping[str, Any]
    index: Mapping[str, Any]
    image_size: int
    side: int
    guidance: float
    instructed: bool


@dataclass(frozen=True)
class Codes:
    """What U captions are encoded to: tokens [U,L,D], mask [U,L] or None, pooled [U,D]."""

    tokens: Tensor
    mask: Tensor | None
    pooled: Tensor

    def zeros(self) -> "Codes":
        """Codes of the same shapes, all 0."""
        return Codes(torch.zeros_like(self.tokens), self.mask, torch.zeros_like(self.pooled))


@dataclass(frozen=True)
class States:
    """What a text encoder returns: hidden states, the last one normed, its pooled vector, the mask of ids."""

    hidden: Sequence[Tensor]
    last: Tensor
    pooled: Tensor | None
    mask: Tensor


class Encoder(HubSpeller):
    """A frozen text encoder with its tokenizer."""

    model: Any

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        self.config: Mapping[str, Any] = model.config.to_dict()  # type: ignore[operator, union-attr]
        self.tokenizer = tokenizer
        self.model = freeze(model, saved=False)

    @property
    def hub(self) -> Any:
        """The encoder."""
        return self.model

    def forward(self, captions: Sequence[str], *, length: int | None = None, masked: bool = False) -> States:
        """Captions padded or cut to `length` tokens, None: the tokenizer's; masked: padding is not seen."""
        length = length or int(self.tokenizer.model_max_length)
        rows = self.tokenizer(
            list(map(self.written, captions)),
            padding="max_length",
            truncation=True,
            max_length=length,
            return_tensors="pt",
        ).to(next(weights_of(self.model))[1].device)
        mask = rows["attention_mask"]
        seen = {"attention_mask": mask} if masked else {}
        out = self.model(input_ids=rows["input_ids"], output_hidden_states=True, **seen)
        pooled = out.get("text_embeds", out.get("pooler_output"))
        return States(out["hidden_states"], out["last_hidden_state"], pooled, mask.bool())

    def kept(self, caption: str, length: int | None = None) -> str:
        """What is read of a caption with more than `length` tokens."""
        return kept_by(self.tokenizer, self.written(caption), length or int(self.tokenizer.model_max_length))


def kept_by(tokenizer: Any, caption: str, length: int) -> str:
    """What a tokenizer leaves of a caption with more than `length` tokens."""
    whole = tokenizer(caption, truncation=False, verbose=False)["input_ids"]
    if len(whole) <= length:
        return caption
    ids = tokenizer(caption, truncation=True, max_length=length)["input_ids"]
    return str(tokenizer.decode(ids, skip_special_tokens=True))


@dataclass(frozen=True)
class Layout(ABC):
    """One family; its class attributes are the row that the folder is read by.

    net: the component that denoises, of one of `nets`; encoders: the text encoders in order, with their
    classes; optional: those that may be missing; codecs: classes of the autoencoder; explicit: the family's
    pipeline gives the noise levels of a flow itself; length: tokens of a caption that are read at most;
    stream: which of a block's outputs is the image's, where text is another, None for the first.
    """

    facts: Facts = field(repr=False)

    net: ClassVar[str] = "transformer"
    nets: ClassVar[tuple[str, ...]]
    encoders: ClassVar[Mapping[str, tuple[str, ...]]]
    optional: ClassVar[tuple[str, ...]] = ()
    codecs: ClassVar[tuple[str, ...]] = ("AutoencoderKL",)
    explicit: ClassVar[bool] = False
    length: ClassVar[int] = 77
    stream: ClassVar[int | None] = None

    @abstractmethod
    def codes(self, encoders: Sequence[Encoder], captions: Sequence[str], *, null: bool = False) -> Codes:
        """The codes of distinct captions; null: of what stands for no caption, given as ""."""

    @abstractmethod
    def inputs(self, x: Tensor, time: Tensor, cond: Cond) -> dict[str, Any]:
        """What the net is called with, by name, at x [B,C,H,W], τ [B]."""

    def output(self, raw: Tensor) -> Tensor:
        """The prediction [B,C,H,W] of what the net returns; of a learned variance nothing is kept."""
        return raw[:, : self.channels]

    def taps(self, model: nn.Module) -> list[str]:
        """The blocks whose outputs a discriminator judges: four, evenly spaced, the last among them."""
        parts = dict(model.named_children())
        lists = [name for name in ("transformer_blocks", "single_transformer_blocks") if name in parts]
        found = [f"{name}.{number}" for name in lists for number in range(len(list(parts[name].children())))]
        places = {round((part + 1) * len(found) / 4) - 1 for part in range(4)}
        return [found[place] for place in sorted(places) if place >= 0]

    def refused(self) -> str | None:
        """What of the folder is not read, as a sentence's end; None: nothing."""
        return None

    @classmethod
    def usual(cls, net: Mapping[str, Any]) -> tuple[int, float]:
        """Steps and guidance that models of the family are usually sampled with."""
        return 50, 7.5

    def kept(self, encoders: Sequence[Encoder], caption: str) -> str:
        """What is read of a caption: of the encoder that reads most of it."""
        return max((encoder.kept(caption) for encoder in encoders), key=len)

    @property
    def channels(self) -> int:
        """C of what is diffused."""
        return int(self.facts.net["in_channels"])

    @property
    def tokens(self) -> int:
        """How many tokens the net sees of an image."""
        return (self.facts.side // int(self.facts.net.get("patch_size") or 1)) ** 2


def mean_of(tokens: Tensor, mask: Tensor) -> Tensor:
    """The mean of the real tokens, [U,L,D], [U,L] → [U,D]."""
    weight = mask.to(tokens.dtype)[:, :, None]
    return (tokens * weight).sum(1) / weight.sum(1).clamp(min=1)


def given(value: Tensor | None) -> Tensor:
    """A part of a condition that a layout itself has made."""
    assert value is not None
    return value
