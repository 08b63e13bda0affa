"""What a frozen text encoder makes of captions, encoded once each.

    captions-K.DIGEST.codes      DIGEST: of the encoder, its context, and the captions of the part
        captions                 JSON, as bytes
        tokens [T,D], ends [U]   the real tokens of all captions, one after the other, float16; where each
        ends pooled [U,D]

Captions are distinct and sorted, the null caption "" among them, in parts of `PART`. A part is written
whole or not at all, so that a killed encoding goes on where it was.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmsd.errors import UserError
from lmsd.files import replacing
from lmsd.types import Progress

EncodeText: TypeAlias = Callable[[list[str]], tuple[Tensor, Tensor, Tensor]]
"""Captions → tokens [U,L,D], mask [U,L], pooled [U,D]."""

STORED = torch.float16
PART = 1_000
SUFFIX = ".codes"
_AT_ONCE = 32


def parts(captions: Sequence[str], encoder: str, length: int) -> dict[str, list[str]]:
    """The captions of every file, by its name; encoder: the digest of what encodes them."""
    everything = sorted({"", *captions})
    found = {}
    for start in range(0, len(everything), PART):
        part = everything[start : start + PART]
        digest = hashlib.sha256(json.dumps([encoder, length, part]).encode()).hexdigest()
        found[f"captions-{start // PART}.{digest[:16]}{SUFFIX}"] = part
    return found


class Codes:
    """The cached codes of captions in a folder.

    Raises UserError where those of some captions are missing.
    """

    def __init__(self, folder: str | Path, captions: Sequence[str], encoder: str, length: int) -> None:
        self.length, self._rows = length, dict[str, tuple[Tensor, Tensor]]()
        wanted = parts(captions, encoder, length)
        missing = [name for name in wanted if not (Path(folder) / name).is_file()]
        if missing:
            others = len(list(Path(folder).glob(f"captions-*{SUFFIX}")))
            raise UserError(
                f"data.train.latents={folder} lacks the codes of {len(missing)} of {len(wanted)} parts of "
                f"the captions ({others} files there are of this or of another encoder, context or set of "
                "captions): `lmsd data encode` with the words of this run makes them"
            )
        for name, part in wanted.items():
            self._take(Path(folder) / name, part)

    def _take(self, file: Path, captions: list[str]) -> None:
        try:
            found = load_file(file)
        except (OSError, SafetensorError) as error:
            raise UserError(f"the codes {file} are damaged: delete the file, and encode again") from error
        ends = [0, *found["ends"].tolist()]
        for number, caption in enumerate(captions):
            tokens = found["tokens"][ends[number] : ends[number + 1]]
            self._rows[caption] = tokens, found["pooled"][number]

    def __len__(self) -> int:
        return len(self._rows)

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor, Tensor] | None:
        """Tokens [U,L,D], mask [U,L], pooled [U,D] in float32; None unless every caption is there."""
        if not all(caption in self._rows for caption in captions):
            return None
        rows = [self._rows[caption] for caption in captions]
        width = rows[0][0].shape[1]
        tokens = torch.zeros(len(rows), self.length, width)
        mask = torch.zeros(len(rows), self.length, dtype=torch.bool)
        for number, (own, _) in enumerate(rows):
            tokens[number, : len(own)], mask[number, : len(own)] = own.float(), True
        return tokens, mask, torch.stack([pooled for _, pooled in rows]).float()


@torch.no_grad()
def encode_captions(
    captions: Sequence[str],
    folder: Path,
    encode: EncodeText,
    encoder: str,
    length: int,
    *,
    rank: int = 0,
    world: int = 1,
    progress: Progress | None = None,
) -> int:
    """Write the parts that are not there of every world-th file; how many were written."""
    folder.mkdir(parents=True, exist_ok=True)
    mine = list(parts(captions, encoder, length).items())[rank::world]
    written = 0
    for done, (name, part) in enumerate(mine, 1):
        if not (folder / name).is_file():
            for left in folder.glob(f"{name}.tmp.*"):  # of a process that was killed
                left.unlink(missing_ok=True)
            with replacing(folder / name) as temporary:
                save_file(_encoded(part, encode), temporary)
            written += 1
        if progress is not None:
            progress(done, len(mine), "encoding captions")
    return written


def _encoded(captions: list[str], encode: EncodeText) -> dict[str, Tensor]:
    tokens: list[Tensor] = []
    pooled: list[Tensor] = []
    for start in range(0, len(captions), _AT_ONCE):
        found, mask, own = encode(captions[start : start + _AT_ONCE])
        tokens += [row[kept].to("cpu", STORED) for row, kept in zip(found, mask, strict=True)]
        pooled.append(own.to("cpu", STORED))
    made = {"tokens": torch.cat(tokens), "pooled": torch.cat(pooled)}
    if not all(bool(value.isfinite().all()) for value in made.values()):
        raise UserError(f"the codes of captions do not fit into {STORED}: train without data.train.latents")
    ends = torch.tensor([len(row) for row in tokens]).cumsum(0)
    written = torch.frombuffer(bytearray(json.dumps(captions).encode()), dtype=torch.uint8)
    return {**made, "ends": ends, "captions": written}
