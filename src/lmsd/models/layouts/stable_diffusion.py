"""Stable Diffusion 1 and 2: a U-Net that reads the last, normed states of one CLIP, padding included."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from lmsd.models.layouts.base import CLIP, Codes, Encoder, Layout, given
from lmsd.types import Cond


class StableDiffusion(Layout):
    """U-Net, one CLIP; pooled, which the net does not read, is CLIP's own."""

    net = "unet"
    nets = ("UNet2DConditionModel",)
    encoders: ClassVar[Mapping[str, tuple[str, ...]]] = {"text_encoder": CLIP}

    def codes(self, encoders: Sequence[Encoder], captions: Sequence[str], *, null: bool = False) -> Codes:
        """The last states, after CLIP's final norm."""
        (clip,) = encoders
        found = clip(captions, masked=bool(clip.config.get("use_attention_mask")))
        return Codes(found.last, None, found.pooled)

    def inputs(self, x: Tensor, time: Tensor, cond: Cond) -> dict[str, Any]:
        """x, τ and the tokens."""
        return {"sample": x, "timestep": time, "encoder_hidden_states": given(cond.tokens)}

    def taps(self, model: nn.Module) -> list[str]:
        """The levels on the way down, and the middle."""
        levels = len(self.facts.net["block_out_channels"])
        return [*(f"down_blocks.{level}" for level in range(levels)), "mid_block"]

    def refused(self) -> str | None:
        """Nets that look at more than noise and text."""
        config = self.facts.net
        if config.get("time_cond_proj_dim") is not None:
            return "its U-Net is told the guidance (time_cond_proj_dim), as those of consistency models are"
        if int(config["in_channels"]) != int(config["out_channels"]):
            return f"its U-Net takes {config['in_channels']} channels and gives {config['out_channels']}"
        return None
