"""Conditioners: what a batch asks for, as tensors.

    c = f(caption or label),     c = f(∅) where drop is True        (for guidance, Ho and Salimans 2022)

The null condition ∅ is learned: one more row of the label table, or the encoding of the empty caption.
A conditioner is a submodule of its generator and learns in its turns; a discriminator gets c detached.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from lmsd.errors import Count, Number, UserError
from lmsd.features.clip import load
from lmsd.models.codes import Codes
from lmsd.models.frozen import digest, fingerprint, freeze, weights_of
from lmsd.models.layouts.base import kept_by
from lmsd.models.tokenizer import (
    SMALLEST,
    encode_caption,
    kept_of,
    train_tokenizer,
    unknown_words,
    with_tokens,
)
from lmsd.models.words import HubSpeller, Speller
from lmsd.types import Batch, Cond, at_least_float32


class Conditioner(nn.Module):
    """Base: forward(batch, drop [B] bool | None) → Cond.

    token_dim, pooled_dim: widths of Cond.tokens and Cond.pooled, 0 where there are none; classes: how many
    labels it knows; reads: what of a batch it needs.
    """

    token_dim: int = 0
    pooled_dim: int = 0
    classes: int = 0
    reads: Literal["text", "label", "nothing"] = "nothing"

    def forward(self, batch: Batch, drop: Tensor | None = None) -> Cond:
        """The condition of each sample; the null condition where `drop` is True."""
        raise NotImplementedError

    def fit(self, captions: list[str]) -> None:
        """Learn from the training captions what is no parameter (a tokenizer); nothing here."""

    def labels(self, prompts: list[str]) -> Tensor | None:
        """The labels [n] that prompts name by their numbers, for those who read labels.

        Raises UserError for one that is none of the classes.
        """
        if self.reads != "label":
            return None
        strange = [word for word in prompts if not (word.isdecimal() and int(word) < self.classes)]
        if strange:
            raise UserError(
                f"'{strange[0]}' is no class of this run: its prompts are numbers, 0 to {self.classes - 1}"
            )
        return torch.tensor([int(word) for word in prompts])

    def spellers(self) -> "Sequence[Speller]":
        """What can learn new words; nothing, where no captions are read."""
        return ()

    def kept(self, caption: str) -> str:
        """The part of a caption that is read: all of it, unless it is longer than the context."""
        return caption

    def unknown(self, captions: Sequence[str]) -> list[str]:
        """The words of captions that its own tokenizer splits; none if it has no tokenizer of its own."""
        return []

    def cut(self, captions: list[str]) -> int:
        """How many of the captions are longer than the context and are cut."""
        return sum(self.kept(caption) != caption for caption in captions)


class NullConditioner(Conditioner):
    """No condition at all: Cond()."""

    def forward(self, batch: Batch, drop: Tensor | None = None) -> Cond:
        """An empty condition, for every batch."""
        return Cond()


class LabelConditioner(Conditioner):
    """Cond.pooled = E[label] [B,dim] and Cond.label, with one more row for the null label `classes`.

    classes: labels 0 to classes - 1; dim: width of the condition.
    """

    reads = "label"

    def __init__(self, classes: Count, dim: Count = 128) -> None:
        super().__init__()
        self.classes = classes
        self.pooled_dim = dim
        self.table = nn.Embedding(classes + 1, dim)

    def forward(self, batch: Batch, drop: Tensor | None = None) -> Cond:
        """Look the labels up; label `classes` where `drop` is True."""
        if batch.label is None:
            raise UserError("condition: these data have no labels (KEY.cls); condition on text or nothing")
        label = batch.label.to(self.table.weight.device)
        if (
            label.device.type == "cpu"
            and len(label)
            and not 0 <= int(label.min()) <= int(label.max()) < self.classes
        ):
            raise UserError(
                f"condition: labels {label.min()} to {label.max()} in a model of {self.classes} classes"
            )
        if drop is not None:
            label = torch.where(drop.to(label.device), self.classes, label)
        return Cond(pooled=self.table(label), label=label)


class CaptionConditioner(Conditioner):
    """Encodes each distinct caption of a batch once and gives every sample its row."""

    reads = "text"

    def ids(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids and the mask of what is no padding, [U,L] each, of U captions."""
        raise NotImplementedError

    def states(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [U,L,D] and pooled [U,D] of ids and mask [U,L]."""
        raise NotImplementedError

    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [U,L,D], mask [U,L], pooled [U,D] of U distinct captions."""
        ids, mask = self.ids(captions)
        tokens, pooled = self.states(ids, mask)
        return tokens, mask, pooled

    def forward(self, batch: Batch, drop: Tensor | None = None) -> Cond:
        """Condition on `batch.text`; on the empty caption where `drop` is True."""
        if batch.text is None:
            raise UserError(
                "condition: these data have no captions (KEY.txt, KEY.json); condition on labels or nothing"
            )
        rows: dict[str, int] = {} if drop is None else {"": 0}
        index = torch.tensor([rows.setdefault(caption, len(rows)) for caption in batch.text])
        tokens, mask, pooled = self.encode(list(rows))
        index = index.to(tokens.device)
        if drop is not None:
            # On the device: reading `drop` here would wait for it.
            index = torch.where(drop.to(tokens.device), 0, index)
        return Cond(tokens=tokens[index], mask=mask[index], pooled=pooled[index])


def padded(ids: Sequence[tuple[int, ...]], length: int) -> tuple[Tensor, Tensor]:
    """Ids padded with the end token, as CLIP pads, and the mask of what is no padding; [U,length]."""
    rows = torch.tensor([[*row, *([1] * (length - len(row)))] for row in ids])
    return rows, torch.arange(length) < torch.tensor([len(row) for row in ids])[:, None]


def _mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean of the real tokens, [U,L,D], [U,L] → [U,D]."""
    weight = mask.to(tokens.dtype)[:, :, None]
    return (tokens * weight).sum(1) / weight.sum(1)


class TextConditioner(CaptionConditioner, Speller):
    """A small CLIP text transformer with a tokenizer of its own, both learned from the training captions.

    dim: width of tokens and of pooled, which is their mean; vocab: room in the table, at least 514 (bytes);
    layers: transformer blocks; heads: of the attention; length: tokens a caption, begin and end included,
    longer captions are cut; std: of the words' rows at the start, 0.02 as CLIP's or larger: at high rates
    words with small rows may become one.

    The tables have their full size from the start, so a new run calls `fit(captions)` once before its first
    batch, and a restored one calls nothing: the tokenizer travels in the state as text (extra state).
    """

    def __init__(
        self,
        dim: Count = 128,
        *,
        vocab: Count = 1024,
        layers: Count = 2,
        heads: Count = 4,
        length: Annotated[int, Number(3)] = 16,
        std: float = 1.0,
    ) -> None:
        from transformers import CLIPTextConfig, CLIPTextModel

        super().__init__()
        if vocab < SMALLEST:
            raise UserError(f"text: vocab={vocab} is too small; the bytes alone are {SMALLEST}")
        if std <= 0:
            raise UserError(f"text: std={std} of the words' rows must be above 0")
        if dim % heads:
            raise UserError(f"text: width {dim} does not divide by {heads} heads")
        self.token_dim = self.pooled_dim = dim
        self.vocab = vocab
        self.length = length
        self.tokenizer = ""
        config = CLIPTextConfig(
            vocab_size=vocab,
            hidden_size=dim,
            intermediate_size=4 * dim,
            projection_dim=dim,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=length,
            hidden_act="gelu",
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
        self.encoder = CLIPTextModel(config)
        # Adam moves every row by its rate, and words of one place in one direction: rows drawn at CLIP's std
        # differ by a hundredth of their size after a few hundred updates at a high rate, and the layer norm
        # leaves nothing of it. At std 1 they stay apart.
        for name, parameter in self.encoder.named_parameters():
            if name.endswith("token_embedding.weight") and std != config.initializer_range:
                nn.init.normal_(parameter, std=std)

    def fit(self, captions: list[str]) -> None:
        """Learn the tokenizer, `self.tokenizer`: the text of a tokenizer.json. Touches no parameter.

        One that came with trained weights stays.
        """
        self.tokenizer = self.tokenizer or train_tokenizer(captions, vocab=self.vocab)

    def ids(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Those of the own tokenizer."""
        if not self.tokenizer:
            raise UserError(
                "text: there is no tokenizer yet; call fit(training captions) or load a checkpoint"
            )
        written = map(self.written, captions)
        rows = [encode_caption(self.tokenizer, caption, self.length) for caption in written]
        ids, mask = padded(rows, self.length)
        device = next(weights_of(self.encoder))[1].device
        return ids.to(device), mask.to(device)

    def states(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Run the transformer."""
        # Attention is causal and padding comes last, so no real token sees it and no mask is needed here.
        tokens = at_least_float32(self.encoder(input_ids=ids).last_hidden_state)
        return tokens, _mean(tokens, mask)

    def kept(self, caption: str) -> str:
        """What the first `length` tokens are of a caption that has more; begin and end are two of them."""
        return kept_of(self.tokenizer, self.written(caption), self.length)

    def spellers(self) -> Sequence[Speller]:
        """Itself."""
        return [self]

    def ids_of(self, text: str) -> list[int]:
        """By the tokenizer learned from the captions."""
        return list(encode_caption(self.tokenizer, text, sys.maxsize)[1:-1])

    def add_tokens(self, tokens: Sequence[str]) -> int:
        """As further entries of the tokenizer."""
        self.tokenizer, first = with_tokens(self.tokenizer, tokens)
        return first

    def table(self) -> nn.Module:
        """The encoder's."""
        return self.encoder.get_input_embeddings()  # type: ignore[no-any-return]

    def set_table(self, table: nn.Module) -> None:
        """Give the encoder others."""
        self.encoder.set_input_embeddings(table)

    def unknown(self, captions: Sequence[str]) -> list[str]:
        """The words that have no entry in its vocabulary."""
        return unknown_words(self.tokenizer, captions) if self.tokenizer else []

    def get_extra_state(self) -> dict[str, str]:
        """The tokenizer's text, for the state dict."""
        return {"tokenizer": self.tokenizer}

    def set_extra_state(self, state: dict[str, str]) -> None:
        """Take the tokenizer of a checkpoint."""
        self.tokenizer = state["tokenizer"]


class PretrainedText(CaptionConditioner, HubSpeller):
    """A frozen CLIP or T5 text encoder and its tokenizer from a local folder in the format of transformers.

    Its weights are no part of checkpoints; their fingerprint is, and another encoder is refused on loading.
    pooled: CLIP's own (the end token), T5's mean of real tokens. codes: what a cache holds of captions.

    path: folder of the encoder with its tokenizer; kind: clip or t5; length: tokens a caption, longer ones
    cut.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        kind: Literal["clip", "t5"] = "clip",
        length: Annotated[int, Number(3)] = 77,
    ) -> None:
        super().__init__()
        if not (Path(path) / "config.json").is_file():
            raise UserError(f"text: {path} is not a folder with a pretrained encoder (it has no config.json)")
        from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

        self.path = str(path)
        self.kind = kind
        self.length = length
        encoder = load(CLIPTextModel if kind == "clip" else T5EncoderModel, path)
        self.tokenizer = AutoTokenizer.from_pretrained(self.path, local_files_only=True)
        self.token_dim = self.pooled_dim = int(encoder.config.hidden_size)
        self.encoder = freeze(encoder, saved=False)
        self.fingerprint = fingerprint(self.encoder)
        self.codes: Codes | None = None

    @cached_property
    def digest(self) -> str:
        """Of the encoder's weights and the tokenizer's vocabulary, for what is kept of its codes."""
        words = json.dumps(sorted(self.tokenizer.get_vocab().items()))
        return hashlib.sha256(f"{digest(self.encoder)} {self.kind} {words}".encode()).hexdigest()

    @property
    def hub(self) -> Any:
        """The encoder."""
        return self.encoder

    def train(self, mode: bool = True) -> "PretrainedText":
        """Keep the encoder in eval mode: its dropout stays off."""
        super().train(mode)
        self.encoder.eval()
        return self

    def kept(self, caption: str) -> str:
        """What the first `length` tokens are of a caption that has more."""
        return kept_by(self.tokenizer, self.written(caption), self.length)

    def spellers(self) -> Sequence[Speller]:
        """Itself."""
        return [self]

    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """What the cache holds of U captions, or what the encoder makes of them."""
        found = None if self.codes is None else self.codes(captions)
        if found is None:
            return super().encode(captions)
        device = next(self.encoder.buffers()).device
        tokens, mask, pooled = (each.to(device) for each in found)
        return tokens, mask, pooled

    def ids(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Those of the encoder's tokenizer."""
        rows = self.tokenizer(
            list(map(self.written, captions)),
            padding="max_length",
            truncation=True,
            max_length=self.length,
            return_tensors="pt",
        ).to(next(weights_of(self.encoder))[1].device)
        return rows["input_ids"], rows["attention_mask"].bool()

    def states(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Run the encoder."""
        out = self.encoder(input_ids=ids, attention_mask=mask.long())
        tokens = at_least_float32(out.last_hidden_state)
        return tokens, at_least_float32(out.pooler_output) if self.kind == "clip" else _mean(tokens, mask)

    def get_extra_state(self) -> dict[str, str]:
        """Which encoder this is."""
        return {"fingerprint": self.fingerprint}

    def set_extra_state(self, state: dict[str, str]) -> None:
        """Refuse the checkpoint of another encoder."""
        if state["fingerprint"] != self.fingerprint:
            raise UserError(
                f"text: the checkpoint was trained with another encoder than the one in {self.path}"
            )
