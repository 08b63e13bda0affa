"""Textual inversion (Gal et al. 2023): a new word learns what it means, and nothing else moves.

φ = R [k,D]: the word's own rows beside the table of each text encoder (`models.words`)
"""

import re
from collections.abc import Sequence
from typing import Annotated, Literal

from lmsd.errors import Count, UserError, Word
from lmsd.models.frozen import thaw
from lmsd.models.generator import Generator
from lmsd.tuning.base import Tuning, tuned_parts

_WORD = r"[a-z0-9][a-z0-9-]*"


class TextualInversion(Tuning):
    """One new word, for captions that contain it in angle brackets.

    word: as my-cat for <my-cat>, lower case; vectors: k, rows that it is made of, one token each;
    init: a word or text whose tokens' rows it begins with, null for the mean of the table; encoders: which
    of the text encoders learn it, from 1, null for all.
    """

    def __init__(
        self,
        word: Annotated[str, Word(r"^[a-z0-9][a-z0-9-]*$", "a word like my-cat, lower case")] = "new",
        *,
        vectors: Count = 1,
        init: str | None = None,
        encoders: Sequence[Literal[1, 2, 3]] | None = None,
    ) -> None:
        if not re.fullmatch(_WORD, word):
            raise UserError(f"tuning.word={word!r} is no word like my-cat, which captions have as <my-cat>")
        self.token, self.vectors, self.init, self.encoders = f"<{word}>", vectors, init, encoders

    def apply(self, generator: Generator) -> None:
        """Widen the tables of the text encoders."""
        for part in tuned_parts(generator):
            thaw(part).requires_grad_(False)
        spellers = generator.conditioner.spellers()
        chosen = range(1, len(spellers) + 1) if self.encoders is None else self.encoders
        if not spellers or max(chosen, default=0) > len(spellers) or not chosen:
            raise UserError(
                f"tuning=textual_inversion: encoders={self.encoders}, and the generator has {len(spellers)} "
                "text encoders that can learn a word"
            )
        for number in sorted(set(chosen)):
            spellers[number - 1].learn(self.token, self.vectors, self.init)
