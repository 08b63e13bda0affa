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
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime import InferenceSession, set_default_logger_severity
from PIL import Image

PHI, MIX_1, MIX_2 = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB], np.uint64)
SHORT, RUN = re.compile("'(s|t|re|ve|m|ll|d)"), re.compile("L+|N|[^LN ]+| +")


def mix(x: Any) -> Any:
    """SplitMix64's finalizer on uint64."""
    x = (x ^ (x >> 30)) * MIX_1
    x = (x ^ (x >> 27)) * MIX_2
    return x ^ (x >> 31)


def bits(seed: int, places: Any, turn: int, tag: str, count: int) -> Any:
    """Hash words, uint64 [B,count]: a function of seed, place, turn, tag and index."""
    key = np.zeros(len(places), np.uint64)
    for word in (seed, turn, zlib.crc32(tag.encode())):
        key = mix(key * 31 + np.uint64(word) + PHI)
    key = mix(mix(key + PHI) * 31 + np.array(places, np.uint64) + PHI)
    return mix(mix(key[:, None] + np.arange(1, count + 1, dtype=np.uint64) * PHI) ^ mix(key)[:, None])


def normal(seed: int, places: Any, turn: int, tag: str, shape: list[int]) -> Any:
    """Standard normal numbers, float32 [B, *shape], two a word (Box and Muller)."""
    count = int(np.prod(shape))
    words = bits(seed, places, turn, tag, (count + 1) // 2)
    radius = np.sqrt(np.log(((words >> 40).astype(np.float32) + 0.5) * 2.0**-24) * -2)
    angle = (words & 0xFFFFFF).astype(np.float32) * (2 * np.pi * 2.0**-24)
    pair = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return pair[:, :count].reshape(len(places), *shape)


class Model:
    """The programs of a folder, and the table by which they draw."""

    def __init__(self, folder: Path) -> None:
        set_default_logger_severity(3)
        self.told: dict[str, Any] = json.loads((folder / "sample.json").read_text("utf-8"))
        self.programs = {name: InferenceSession(folder / f"{name}.onnx") for name in self.told["programs"]}

    def run(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        """The outputs of a program, by name."""
        told = self.told["programs"][name]
        found = self.programs[name].run(None, {key: given[key] for key in told["inputs"]})
        return dict(zip(told["outputs"], found, strict=True))

    def ids(self, caption: str) -> list[int]:
        """CLIP's byte pairs, in lower case: of runs of letters, of single digits, of runs of signs."""
        text, at, found = "".join(map(str.lower, unicodedata.normalize("NFC", caption))), 0, [0]
        kinds = "".join(" " if sign.isspace() else unicodedata.category(sign)[0] for sign in text)
        while at < len(text):
            end = (SHORT.match(text, at) or RUN.match(kinds, at)).end()  # type: ignore[union-attr]
            symbols = [self.told["letters"][byte] for byte in text[at:end].strip().encode()]
            at, symbols[-1:] = end, [letter + "</w>" for letter in symbols[-1:]]
            for pair in self.told["merges"]:
                while pair in (pairs := [list(two) for two in pairwise(symbols)]):
                    symbols[pairs.index(pair) : pairs.index(pair) + 2] = ["".join(pair)]
            found += [self.told["vocab"].get(symbol, 1) for symbol in symbols]
        return [*found[: self.told["length"] - 1], 1]

    def condition(self, prompts: list[str], null: bool) -> dict[str, Any]:
        """What the prompts mean to the net, or what no prompt does."""
        if self.told["reads"] == "nothing":
            return {}
        if self.told["reads"] == "label":
            label = np.array([self.told["classes"] if null else int(prompt) for prompt in prompts])
            return {"label": label, **self.run("condition", {"label": label})}
        rows, length = [self.ids("" if null else prompt) for prompt in prompts], self.told["length"]
        mask = np.arange(length) < np.array([[len(row)] for row in rows])
        ids = np.array([row + [1] * (length - len(row)) for row in rows])
        return {"mask": mask, **self.run("condition", {"ids": ids, "mask": mask})}

    def draw(self, prompts: list[str], seed: int = 0) -> Any:
        """One image for each prompt, uint8 [n,H,W,C]."""
        plan, places = self.told["plan"], range(len(prompts))
        wanted, null = (self.condition(prompts, kind) for kind in (False, True))
        known = {name: normal(seed, places, turn, tag, plan["shape"]) for name, turn, tag in plan["noise"]}
        for number, call in enumerate(plan["calls"]):
            x_t = sum(np.float32(weight) * known[name] for name, weight in call["x"])
            given = {"x_t": x_t, "t": np.full(len(prompts), call["t"], np.float32)}
            given["z"] = normal(seed, places, call["step"], "z", [plan["z_dim"]])
            found = self.run("denoiser", {**given, **wanted})["x0"]
            if call["guided"]:
                free = self.run("denoiser", {**given, **null})["x0"]
                found = free + np.float32(plan["guidance"]) * (found - free)
            known[f"x0.{number}"] = np.clip(found, *plan["bounds"])
        made = sum(np.float32(weight) * known[name] for name, weight in plan["result"])
        made = self.run("decoder", {"z": made})["images"] if "decoder" in self.programs else made
        return np.rint((np.clip(made, -1, 1) + 1) * np.float32(127.5)).astype(np.uint8).transpose(0, 2, 3, 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("prompts", nargs="+")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("picture.png"))
    asked = parser.parse_args()
    for number, image in enumerate(Model(Path(__file__).parent).draw(asked.prompts, asked.seed)):
        out = asked.out.with_stem(f"{asked.out.stem}-{number:03d}")
        Image.fromarray(image.squeeze()).save(out)
        print(out)
