"""Flux: a transformer over squares of 2x2 latents and T5's tokens; CLIP's pooled vector; a guidance input."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lmsd.models.layouts.base import CLIP, T5, Codes, Encoder, Layout, given
from lmsd.types import Cond


class Flux(Layout):
    """Tokens: T5's last states, padding and all; pooled: CLIP's own.

    The net takes τ/1000, and where it was distilled from a guided one what the guidance was.
    """

    nets = ("FluxTransformer2DModel",)
    encoders: ClassVar[Mapping[str, tuple[str, ...]]] = {"text_encoder": CLIP, "text_encoder_2": T5}
    explicit = True
    stream = 1
    length = 512

    def codes(self, encoders: Sequence[Encoder], captions: Sequence[str], *, null: bool = False) -> Codes:
        """T5's tokens and CLIP's pooled vector."""
        clip, t5 = encoders
        return Codes(t5(captions, length=self.length).last, None, given(clip(captions).pooled))

    def inputs(self, x: Tensor, time: Tensor, cond: Cond) -> dict[str, Any]:
        """Packed x, τ/1000, the text, the places of both, and the guidance."""
        tokens, half = given(cond.tokens), self.facts.side // 2
        rows = torch.arange(half, dtype=torch.float32, device=x.device)
        places = torch.cartesian_prod(rows.new_zeros(1), rows, rows)
        told = torch.full((len(x),), self.facts.guidance, device=x.device)
        return {
            "hidden_states": F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2),
            "timestep": time / 1000,
            "guidance": told if self.facts.net.get("guidance_embeds") else None,
            "encoder_hidden_states": tokens,
            "pooled_projections": given(cond.pooled),
            "txt_ids": places.new_zeros(tokens.shape[1], 3),
            "img_ids": places,
        }

    def output(self, raw: Tensor) -> Tensor:
        """[B, HW/4, 4C] → [B,C,H,W]."""
        half = self.facts.side // 2
        return F.pixel_shuffle(raw.transpose(1, 2).unflatten(2, (half, half)), 2)

    def kept(self, encoders: Sequence[Encoder], caption: str) -> str:
        """What T5 reads."""
        return encoders[1].kept(caption, self.length)

    def refused(self) -> str | None:
        """Latents that cannot be packed, and nets that look at more than noise."""
        if self.facts.side % 2:
            return f"its latents have a side of {self.facts.side}, which is odd"
        if self.facts.net.get("out_channels") not in (None, self.facts.net["in_channels"]):
            return "its net takes an image beside the noise"
        return None

    @property
    def channels(self) -> int:
        """A quarter of what the net takes."""
        return int(self.facts.net["in_channels"]) // 4

    @property
    def tokens(self) -> int:
        """Squares of 2x2."""
        return (self.facts.side // 2) ** 2

    @classmethod
    def usual(cls, net: Mapping[str, Any]) -> tuple[int, float]:
        """No second pass: the guidance is an input; distilled nets without one take 4 steps."""
        return (28 if net.get("guidance_embeds") else 4), 1.0
