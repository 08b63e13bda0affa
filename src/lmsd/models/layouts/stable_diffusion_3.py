"""SD3: a transformer over noise and text, which is two CLIPs side by side and then a T5 along the tokens."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lmsd.models.layouts.base import CLIP_PROJECTED, T5, Codes, Encoder, Layout, given
from lmsd.types import Cond


class StableDiffusion3(Layout):
    """Tokens: the CLIPs' states before the last, widened by zeros to T5's width, then T5's; no mask.

    Pooled: both projections. A folder without its T5 has zeros in their place.
    """

    nets = ("SD3Transformer2DModel",)
    encoders: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "text_encoder": CLIP_PROJECTED,
        "text_encoder_2": CLIP_PROJECTED,
        "text_encoder_3": T5,
    }
    optional = ("text_encoder_3",)
    stream = 1
    length = 256

    def codes(self, encoders: Sequence[Encoder], captions: Sequence[str], *, null: bool = False) -> Codes:
        """Both CLIPs, then T5."""
        clips = [encoder(captions) for encoder in encoders[:2]]
        pooled = torch.cat([given(states.pooled) for states in clips], -1)
        side_by_side = torch.cat([states.hidden[-2] for states in clips], -1)
        width = int(self.facts.net["joint_attention_dim"])
        if len(encoders) > 2:
            more = encoders[2](captions, length=self.length).last
        else:
            more = side_by_side.new_zeros(len(captions), self.length, width)
        widened = F.pad(side_by_side, (0, more.shape[-1] - side_by_side.shape[-1]))
        return Codes(torch.cat([widened, more], 1), None, pooled)

    def inputs(self, x: Tensor, time: Tensor, cond: Cond) -> dict[str, Any]:
        """x, τ, the tokens and the pooled vector."""
        return {
            "hidden_states": x,
            "timestep": time,
            "encoder_hidden_states": given(cond.tokens),
            "pooled_projections": given(cond.pooled),
        }

    def kept(self, encoders: Sequence[Encoder], caption: str) -> str:
        """What T5 reads, which is the most; without it what CLIP does."""
        return encoders[2].kept(caption, self.length) if len(encoders) > 2 else encoders[0].kept(caption)

    @classmethod
    def usual(cls, net: Mapping[str, Any]) -> tuple[int, float]:
        """As of its first release."""
        return 28, 7.0
