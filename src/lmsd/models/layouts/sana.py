"""Sana: a linear transformer that reads a small language model's states of an instruction and the caption."""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any, ClassVar

import torch
from torch import Tensor

from lmsd.models.layouts.base import Codes, Encoder, Layout, given, mean_of
from lmsd.types import Cond


class Sana(Layout):
    """Tokens: Gemma's last states of instruction and caption, of which the first and the last 299 are taken.

    No caption is encoded without the instruction. The net takes τ times its own scale.
    """

    nets = ("SanaTransformer2DModel",)
    encoders: ClassVar[Mapping[str, tuple[str, ...]]] = {"text_encoder": ("Gemma2Model",)}
    codecs = ("AutoencoderDC",)
    length = 300

    def codes(self, encoders: Sequence[Encoder], captions: Sequence[str], *, null: bool = False) -> Codes:
        """Tokens, their mask and their mean."""
        (gemma,) = encoders
        gemma.tokenizer.padding_side = "right"
        before = "" if null or not self.facts.instructed else instruction()
        whole = self.length + (len(gemma.tokenizer.encode(before)) - 2 if before else 0)
        told = [before + caption.lower().strip() for caption in captions]
        found = gemma(told, length=whole, masked=True)
        taken = torch.tensor([0, *range(whole - self.length + 1, whole)], device=found.last.device)
        tokens, mask = found.last[:, taken], found.mask[:, taken]
        return Codes(tokens, mask, mean_of(tokens, mask))

    def inputs(self, x: Tensor, time: Tensor, cond: Cond) -> dict[str, Any]:
        """x, scaled τ, the tokens and their mask."""
        return {
            "hidden_states": x,
            "timestep": time * float(self.facts.net.get("timestep_scale", 1.0)),
            "encoder_hidden_states": given(cond.tokens),
            "encoder_attention_mask": given(cond.mask).to(x.dtype),
        }

    def kept(self, encoders: Sequence[Encoder], caption: str) -> str:
        """What Gemma reads."""
        return encoders[0].kept(caption, self.length)

    def refused(self) -> str | None:
        """Distilled nets, which are told the guidance."""
        return "its net is told the guidance" if self.facts.net.get("guidance_embeds") else None

    @classmethod
    def usual(cls, net: Mapping[str, Any]) -> tuple[int, float]:
        """As of its release."""
        return 20, 4.5


def instruction() -> str:
    """What diffusers' own pipeline puts before a caption, one paragraph a line."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # no word on torchvision
    from diffusers import SanaPipeline

    lines: Sequence[str] = signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    return "\n".join(lines)
