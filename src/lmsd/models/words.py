"""New words of a text encoder: rows of their own beside its table, so that nothing else moves.

    e(id) = E[id]             id < first: the table, as it was
            R[id − first]     the rows R [k,D] of new tokens, the only thing that learns

A word of several vectors is spelled `<cat> <cat>_1 <cat>_2`, one token each, as diffusers and others have it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Widened(nn.Module):
    """A table of embeddings with rows for ids from `first` on."""

    def __init__(self, table: nn.Module, first: int, rows: Tensor) -> None:
        super().__init__()
        self.table, self.first = table, first
        self.rows = nn.Parameter(rows)

    def forward(self, ids: Tensor) -> Tensor:
        """[...] → [...,D]."""
        new = ids >= self.first
        old: Tensor = self.table(ids.masked_fill(new, 0))
        rows = self.rows[(ids - self.first).clamp(0, len(self.rows) - 1)].to(old)
        return torch.where(new[..., None], rows, old)


class Speller(nn.Module, ABC):
    """Base of what turns captions into states of a text encoder: it can learn new words.

    spelled: new words and how they are written for the tokenizer.
    """

    spelled: Mapping[str, str] = {}

    @abstractmethod
    def ids_of(self, text: str) -> list[int]:
        """The ids of a text without those that begin and end it."""

    @abstractmethod
    def add_tokens(self, tokens: Sequence[str]) -> int:
        """Give tokens ids of their own, one after the other; the first of them."""

    @abstractmethod
    def table(self) -> nn.Module:
        """The embeddings of its tokens."""

    @abstractmethod
    def set_table(self, table: nn.Module) -> None:
        """Take others."""

    def rows(self) -> nn.Parameter | None:
        """Those of the word that it has learned, if any."""
        table = self.table()
        return table.rows if isinstance(table, Widened) else None

    def learn(self, word: str, vectors: int, like: str | None) -> None:
        """Add a word of so many vectors, which begin as those of a text, None: as their mean."""
        tokens = [word, *(f"{word}_{number}" for number in range(1, vectors))]
        table = self.table()
        ids = self.ids_of(like) if like is not None else []
        with torch.no_grad():
            if ids:
                rows = table(torch.tensor([ids[number % len(ids)] for number in range(vectors)]))
            else:
                rows = next(iter(table.parameters())).mean(0, keepdim=True).repeat(vectors, 1)
        self.set_table(Widened(table, self.add_tokens(tokens), rows.clone()))
        self.spelled = {**self.spelled, word: " ".join(tokens)}

    def written(self, caption: str) -> str:
        """A caption with new words spelled out."""
        for word, spelling in self.spelled.items():
            caption = caption.replace(word, spelling)
        return caption


class HubSpeller(Speller):
    """A speller whose encoder (`hub`) and tokenizer are those of transformers."""

    tokenizer: Any

    @property
    @abstractmethod
    def hub(self) -> Any:
        """The encoder."""

    def ids_of(self, text: str) -> list[int]:
        """By its tokenizer."""
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def add_tokens(self, tokens: Sequence[str]) -> int:
        """As added tokens of its tokenizer."""
        first = len(self.tokenizer)
        self.tokenizer.add_tokens(list(tokens))
        return first

    def table(self) -> nn.Module:
        """The encoder's."""
        found: nn.Module = self.hub.get_input_embeddings()
        return found

    def set_table(self, table: nn.Module) -> None:
        """Give the encoder others."""
        self.hub.set_input_embeddings(table)
