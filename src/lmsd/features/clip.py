"""CLIP from a folder that `save_pretrained` wrote, for what extracts features and what rewards alike."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmsd.errors import UserError

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the pixels that the family's models were trained on."""


class CLIP:
    """Projected embeddings, none of them of unit length, of prepared pixels and of captions; frozen.

    length: tokens that it reads of a caption. Raises UserError where the folder lacks weights.
    """

    def __init__(self, path: str | Path) -> None:
        from transformers import AutoTokenizer, CLIPModel

        self.net = load(CLIPModel, path)
        self.length = int(self.net.config.text_config.max_position_embeddings)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(str(path), local_files_only=True)

    def images(self, pixels: Tensor) -> Tensor:
        """Embeddings [n,d] of pixels [n,3,S,S], resized and normalized already; differentiable."""
        pooled = self.net.vision_model(pixel_values=pixels).pooler_output
        out: Tensor = self.net.visual_projection(pooled)
        return out

    @torch.no_grad()
    def texts(self, captions: Sequence[str]) -> Tensor:
        """Embeddings [n,d] of captions, cut to the model's length."""
        device = next(chain(self.net.parameters(), self.net.buffers())).device
        words = self._tokenizer(
            list(captions), padding=True, truncation=True, max_length=self.length, return_tensors="pt"
        ).to(device)
        pooled = self.net.text_model(
            input_ids=words["input_ids"], attention_mask=words["attention_mask"]
        ).pooler_output
        out: Tensor = self.net.text_projection(pooled)
        return out

    def cut(self, captions: Sequence[str]) -> int:
        """How many have more tokens than the model's length."""
        if not captions:
            return 0
        ids = self._tokenizer(list(captions), truncation=False, verbose=False)["input_ids"]
        return sum(len(each) > self.length for each in ids)


def load(kind: Any, path: str | Path) -> Any:
    """A frozen model whose every weight is in the folder; transformers would draw what is missing."""
    net, told = kind.from_pretrained(str(path), local_files_only=True, output_loading_info=True)
    missing = sorted(told["missing_keys"]) + sorted(str(each[0]) for each in told["mismatched_keys"])
    if missing:
        raise UserError(
            f"the weights at {path} lack {len(missing)} tensors of this {net.config.model_type} model, the "
            f"first of them {missing[0]}: save the model again, or name another folder"
        )
    return net.eval().requires_grad_(False)
