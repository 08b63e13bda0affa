"""PixArt: a transformer with cross-attention to T5's real tokens; of its 2C channels the first C are ε̂."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lmsd.models.layouts.base import T5, Codes, Encoder, Layout, given, mean_of
from lmsd.types import Cond


class PixArtSigma(Layout):
    """Tokens: T5's last states of the lower-case caption, with the mask of what is no padding.

    pooled, which the net does not read, is their mean.
    """

    nets = ("PixArtTransformer2DModel",)
    encoders: ClassVar[Mapping[str, tuple[str, ...]]] = {"text_encoder": T5}
    length = 300

    def codes(self, encoders: Sequence[Encoder], captions: Sequence[str], *, null: bool = False) -> Codes:
        """T5's tokens, their mask and their mean."""
        lower = [caption.lower().strip() for caption in captions]
        found = encoders[0](lower, length=self.length, masked=True)
        return Codes(found.last, found.mask, mean_of(found.last, found.mask))

    def inputs(self, x: Tensor, time: Tensor, cond: Cond) -> dict[str, Any]:
        """x, τ, the tokens and their mask; the size of the image, where the net is told."""
        sizes: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        told = self.facts.net.get("use_additional_conditions")
        if told or (told is None and self.facts.net.get("sample_size") == 128):
            size = torch.full((len(x), 2), float(self.facts.image_size), dtype=x.dtype, device=x.device)
            sizes = {"resolution": size, "aspect_ratio": torch.ones_like(size[:, :1])}
        return {
            "hidden_states": x,
            "timestep": time,
            "encoder_hidden_states": given(cond.tokens),
            "encoder_attention_mask": given(cond.mask).to(x.dtype),
            "added_cond_kwargs": sizes,
        }

    def kept(self, encoders: Sequence[Encoder], caption: str) -> str:
        """What T5 reads."""
        return encoders[0].kept(caption, self.length)

    @classmethod
    def usual(cls, net: Mapping[str, Any]) -> tuple[int, float]:
        """As of its release."""
        return 20, 4.5


class PixArtAlpha(PixArtSigma):
    """The first PixArt, with shorter captions; at 1024 its net is told the size of the image."""

    length = 120
