"""Is a run that copies a tenth of its samples from the training set flagged, and an honest one not?

    python benchmarks/copies.py [--runs 20]

Run s has 1,000 training and 300 test images of its own: captioned scenes of `shapes` at 16x16, drawn by
seed s. It is scored twice as `lmsd evaluate` does it: lmsd-cnn trained on its training images, two
generation seeds, record, picture of the closest pairs and report. The honest generator draws a new scene
for every caption, as a perfect model would; the copying one does too, but for a tenth of its samples, which
are training images. Both the record and the report's verdict must say which is which: the test for copies
has a level of 0.1 %. Exits with 1 where one run is taken for the other; results:
benchmarks/results/copies.json.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmsd.data.builders.shapes import parse_caption, random_scene, render
from lmsd.evaluation import Evaluator
from lmsd.evaluation.report import write_report
from lmsd.features.cnn import train_extractor
from lmsd.metrics import FALSE_ALARM
from lmsd.rng import Rng
from lmsd.sampling import Generate
from lmsd.types import Batch

SIZE, TRAIN, TEST, SEEDS, SHARE = 16, 1000, 300, (0, 1), 0.1
RESULTS = Path(__file__).parent / "results" / "copies.json"


class Scenes:
    """n random scenes in memory."""

    hash = None

    def __init__(self, n: int, seed: Sequence[int]) -> None:
        generator = np.random.default_rng(seed)
        self.scenes = [random_scene(generator) for _ in range(n)]
        self.x = torch.stack([pixels(scene) for scene in self.scenes])

    def __len__(self) -> int:
        return len(self.scenes)

    def images(self, indices: Sequence[int]) -> Tensor:
        return self.x[list(indices)]

    def captions(self, indices: Sequence[int]) -> list[str]:
        return [self.scenes[index].caption() for index in indices]

    def labels(self, indices: Sequence[int]) -> Tensor:
        return torch.tensor([self.scenes[index].label for index in indices])


def pixels(scene: Any) -> Tensor:
    """A scene as float32 [3,16,16] in [-1,1]."""
    return torch.from_numpy(render(scene, SIZE)).permute(2, 0, 1).float().div(127.5).sub(1.0)


def honest(batch: Batch, rng: Rng) -> Tensor:
    """A new scene for each caption: what it leaves open is drawn by (seed, row)."""
    assert batch.text is not None
    images = []
    for caption, seed in zip(batch.text, rng.integer(0, 2**31, (), "scene").tolist(), strict=True):
        asked, drawn = parse_caption(caption), random_scene(np.random.default_rng(seed))
        images.append(
            pixels(replace(asked, background=drawn.background, shift=drawn.shift, scale=drawn.scale))
        )
    return torch.stack(images)


def copying(train: Scenes) -> Generate:
    """As `honest`, but a tenth of the samples are training images."""

    def generate(batch: Batch, rng: Rng) -> Tensor:
        stolen = rng.uniform((), "copied") < SHARE
        sources = rng.integer(0, len(train), (), "source")
        return torch.where(stolen[:, None, None, None], train.x[sources], honest(batch, rng))

    return generate


def scored(run: int, folder: Path) -> dict[str, dict[str, Any]]:
    """What the record and the report say of both generators of one run."""
    train, test = Scenes(TRAIN, (run, 0)), Scenes(TEST, (run, 1))
    extractor = train_extractor(train, images=4000, seed=run)
    evaluator = Evaluator(test, extractor, train=train, halvings=2)
    found = {}
    for name, generate in (("copying", copying(train)), ("honest", honest)):
        place = folder / f"{name}-{run}"
        scores = evaluator(generate, seeds=SEEDS, split="test")
        evaluator.closest(generate, scores, scores.write(place).with_suffix(".png"))
        record = json.loads((place / "eval" / "test" / "metrics.json").read_text())["scores"]["neighbors"]
        page = write_report(place).read_text()
        verdict = "Copies of the training set: " in page and "see the closest pairs" in page
        assert verdict != ("no sign of copying" in page)
        found[name] = {key: record[key] for key in ("flagged", "p", "copies")} | {"verdict": verdict}
    return found


def judged(runs: int, folder: Path) -> dict[str, dict[str, Any]]:
    """For each generator: of how many runs record and verdict say that it copies, and the p-values."""
    found = [scored(run, folder) for run in range(runs)]
    return {
        name: {
            "runs": runs,
            "flagged": sum(each[name]["flagged"] for each in found),
            "verdicts": sum(each[name]["verdict"] for each in found),
            "p": [float(f"{each[name]['p']:.3g}") for each in found],
            "copies": [round(each[name]["copies"], 3) for each in found],
        }
        for name in ("copying", "honest")
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        found = judged(runs, Path(folder))
    for name, each in found.items():
        print(f"{name}: {each['flagged']} of {runs} flagged, p {min(each['p']):.2g} to {max(each['p']):.2g}")
    about = {"n": TEST, "generation_seeds": SEEDS, "train": TRAIN, "copied": SHARE, "level": FALSE_ALARM}
    RESULTS.write_text(json.dumps(about | {"seeds": f"0 to {runs - 1}"} | found, indent=1) + "\n")
    right = all(found["copying"][key] == runs and not found["honest"][key] for key in ("flagged", "verdicts"))
    return int(not right)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
