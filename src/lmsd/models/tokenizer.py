"""A tokenizer learned from the training captions: byte pairs in CLIP's form.

Its text (tokenizer.json) says all of it; vocabulary and merges open as a `transformers.CLIPTokenizer` as they
are. If there is room, every frequent word becomes one token; an unseen word is split into pieces and single
bytes, so any caption can be encoded.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from lmsd.errors import UserError

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
SUFFIX = "</w>"
SMALLEST = 2 + 2 * 256
"""Entries before the first merge: begin, end, each byte within a word and at a word's end."""

_WORDS = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def _build(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    """CLIP's pipeline (normalize, split, bytes, pairs) around a vocabulary."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )

    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix=SUFFIX,
            fuse_unk=False,
            unk_token=END,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing((END, 1), (BEGIN, 0), False, False)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (BEGIN, END)])
    return tokenizer


def train_tokenizer(captions: Iterable[str], *, vocab: int) -> str:
    """The text of a tokenizer.json of at most `vocab` entries; it depends on no order.

    Raises UserError when there are no captions or `vocab` < 514, the bytes alone.
    """
    from tokenizers import pre_tokenizers, trainers

    # Training runs on threads, and a process that used them and then forks its loaders is warned of it.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    counts = Counter(captions)
    if not counts:
        raise UserError(
            "tokenizer: there is no caption to learn from; the training shards need KEY.txt or KEY.json"
        )
    if vocab < SMALLEST:
        raise UserError(f"tokenizer: vocab={vocab} is too small; the bytes alone are {SMALLEST}")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # All single symbols are given first and in order: the trainer would else number the word ends by a hash.
    first = [BEGIN, END, *alphabet, *(symbol + SUFFIX for symbol in alphabet)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=first, end_of_word_suffix=SUFFIX, show_progress=False
    )
    learner = _build({BEGIN: 0, END: 1}, [])
    learner.train_from_iterator((text for text in sorted(counts) for _ in range(counts[text])), trainer)
    model = json.loads(learner.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return _build(model["vocab"], merges).to_str()  # type: ignore[no-any-return]


@lru_cache(maxsize=16)
def _open(text: str) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(text)


def with_tokens(text: str, tokens: Sequence[str]) -> tuple[str, int]:
    """The tokenizer `text` with further entries, found in captions as they are written; the first's id."""
    from tokenizers import AddedToken, Tokenizer

    found = Tokenizer.from_str(text)
    first: int = found.get_vocab_size()
    found.add_tokens([AddedToken(token, normalized=False) for token in tokens])
    return found.to_str(), first


@lru_cache(maxsize=65_536)
def encode_caption(text: str, caption: str, length: int) -> tuple[int, ...]:
    """Token ids of a caption by the tokenizer `text`: begin, words, end; cut to `length`, the end kept."""
    ids = _open(text).encode(caption).ids
    return tuple(ids if len(ids) <= length else [*ids[: length - 1], ids[-1]])


@lru_cache(maxsize=65_536)
def kept_of(text: str, caption: str, length: int) -> str:
    """The part of a caption that its first `length` tokens by the tokenizer `text` hold, or all."""
    found = _open(text).encode(caption)
    if len(found.ids) <= length:
        return caption
    return caption[: max(end for _, end in found.offsets[: length - 1])]


def unknown_words(text: str, captions: Iterable[str]) -> list[str]:
    """The words of captions that the tokenizer `text` has no entry of their own for, in order, each once.

    Empty for a tokenizer of single bytes, which has no words at all.
    """
    if _open(text).get_vocab_size() <= SMALLEST:
        return []
    words = (word.strip(".,;:!?'\"()").lower() for caption in captions for word in caption.split())
    return [word for word in dict.fromkeys(words) if word and len(_open(text).encode(word).ids) > 3]
