"""SDXL: a U-Net that reads two CLIPs side by side, the second one's pooled vector, and six sizes."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lmsd.models.layouts.base import CLIP, CLIP_PROJECTED, Codes, Encoder, given
from lmsd.models.layouts.stable_diffusion import StableDiffusion
from lmsd.types import Cond


class StableDiffusionXL(StableDiffusion):
    """Tokens: the states before the last of both, not normed; pooled: the second one's projection.

    The sizes are those of an image that was neither cropped nor resized: (H, W, 0, 0, H, W).
    """

    encoders: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "text_encoder": CLIP,
        "text_encoder_2": CLIP_PROJECTED,
    }

    def codes(self, encoders: Sequence[Encoder], captions: Sequence[str], *, null: bool = False) -> Codes:
        """Both encoders' states; zeros for no caption, where the folder says so."""
        found = [encoder(captions) for encoder in encoders]
        codes = Codes(torch.cat([states.hidden[-2] for states in found], -1), None, given(found[-1].pooled))
        return codes.zeros() if null and self.facts.index.get("force_zeros_for_empty_prompt", True) else codes

    def inputs(self, x: Tensor, time: Tensor, cond: Cond) -> dict[str, Any]:
        """Those of Stable Diffusion, and the pooled vector with the sizes."""
        size = float(self.facts.image_size)
        sizes = torch.tensor([size, size, 0.0, 0.0, size, size], dtype=x.dtype, device=x.device)
        more = {"text_embeds": given(cond.pooled), "time_ids": sizes.expand(len(x), -1)}
        return {**super().inputs(x, time, cond), "added_cond_kwargs": more}

    @classmethod
    def usual(cls, net: Mapping[str, Any]) -> tuple[int, float]:
        """Fewer steps and less guidance than before."""
        return 50, 5.0
