"""Draw with the model in this folder; it needs numpy, pillow and onnxruntime, and nothing else.

    python sample.py "a red circle" "a blue star" --seed 0 --out picture.png

Image j is the one that `lmsd sample` draws at place j for the same prompt and seed. A model of classes takes
numbers as prompts; one without a condition takes as many empty ones ("") as there shall be images.
"""

import argparse
import json
import re
import unicodedata
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

FOLDER = Path(__file__).parent
PHI, MIX_1, MIX_2 = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB], np.uint64)


def mix(x: Any) -> Any:
    """SplitMix64's finalizer on uint64."""
    x = (x ^ (x >> np.uint64(30))) * MIX_1
    x = (x ^ (x >> np.uint64(27))) * MIX_2
    return x ^ (x >> np.uint64(31))


def bits(seed: int, places: Any, turn: int, tag: str, count: int) -> Any:
    """Hash words, uint64 [B,count]: a function of seed, place, turn, tag and index."""
    key = np.zeros(len(places), np.uint64)
    for word in (seed, turn, zlib.crc32(tag.encode()), np.array(places)):
        key = mix(key * np.uint64(31) + np.asarray(word).astype(np.uint64) + PHI)
    return mix(mix(key[:, None] + np.arange(1, count + 1, dtype=np.uint64) * PHI) ^ mix(key)[:, None])


def normal(seed: int, places: Any, turn: int, tag: str, shape: list[int]) -> Any:
    """Standard normal numbers, float32 [B, *shape], two a word (Box and Muller)."""
    count = int(np.prod(shape))
    words = bits(seed, places, turn, tag, (count + 1) // 2)
    share = ((words >> np.uint64(40)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-24)
    radius = np.sqrt(np.log(share) * np.float32(-2))
    angle = (words & np.uint64(0xFFFFFF)).astype(np.float32) * np.float32(2 * np.pi * 2.0**-24)
    pair = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return pair[:, :count].reshape(len(places), *shape)


class Model:
    """The programs of a folder, and the table by which they draw."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.told: Any = json.loads((folder / "sample.json").read_text("utf-8"))
        self.ranks = {tuple(pair): rank for rank, pair in enumerate(self.told["merges"])}
        self.programs = {name: onnxruntime.InferenceSession(folder / told["file"])
                         for name, told in self.told["programs"].items()}  # fmt: skip

    def run(self, name: str, given: dict[str, Any]) -> Any:
        """The outputs of a program, by name."""
        told = self.told["programs"][name]
        found = self.programs[name].run(None, {key: given[key] for key in told["inputs"]})
        return dict(zip(told["outputs"], found, strict=True))

    def ids(self, caption: str) -> list[int]:
        """CLIP's byte pairs: runs of letters, single digits and runs of signs, in lower case."""
        text, at, found = "".join(map(str.lower, unicodedata.normalize("NFC", caption))), 0, [0]
        kinds = "".join("S" if sign.isspace() else unicodedata.category(sign)[0] for sign in text)
        while at < len(text):
            end = (re.compile("'(s|t|re|ve|m|ll|d)").match(text, at)
                   or re.compile("L+|N|S+(?<=S)|[^LNS]+|.").match(kinds, at)).end()  # type: ignore[union-attr]  # fmt: skip
            symbols = [self.told["letters"][byte] for byte in text[at:end].strip().encode()]
            at, symbols[-1:] = end, [letter + "</w>" for letter in symbols[-1:]]
            while pairs := [(self.ranks.get(pair, 1 << 30), i) for i, pair in enumerate(zip(symbols, symbols[1:]))]:
                rank, i = min(pairs)
                if rank == 1 << 30:
                    break
                symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
            found += [self.told["vocab"].get(symbol, 1) for symbol in symbols]
        return [*found[: self.told["length"] - 1], 1]
