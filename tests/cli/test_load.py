"""`lmsd.load` of a run of the command line: the images of `lmsd sample`, and the lines that docs show."""

import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tiny_home import Home, spoken

import lmsd
from lmsd.evaluation.grid import sample_grid
from lmsd.types import scale

QUICKSTART = Path(__file__).parents[2] / "docs" / "quickstart.md"
PROMPTS = ["a red circle", "a blue star"]


def test_its_images_are_those_of_lmsd_sample(home: Home) -> None:
    words = ["sample", "run=outputs/first", "prompts=[a red circle, a blue star]", "seeds=[3]", "steps=2"]
    for ema, more in (("ema", []), ("64", ["ema=64"]), ("raw", ["ema=raw"])):
        grid = spoken([*words, *more, f"out=made/load-{ema}.png"]).strip()
        images = lmsd.load("outputs/first", ema=ema).sample(PROMPTS, seed=3, steps=2)
        assert images.shape == (2, 16, 16, 3)
        ours = sample_grid(list(scale(torch.from_numpy(images).permute(0, 3, 1, 2))), PROMPTS, columns=2)
        assert np.array_equal(np.asarray(ours), np.asarray(Image.open(grid)))


def test_the_lines_of_the_notebook_run(home: Home) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", QUICKSTART.read_text(), re.S)
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) == 3
    names: dict[str, object] = {}
    exec(compile(code.replace('"last"', '"outputs/first"'), "quickstart", "exec"), names)
    images = names["images"]
    assert isinstance(images, np.ndarray)
    assert (images.dtype, images.shape) == (np.uint8, (2, 16, 16, 3))


def test_a_model_says_what_it_is_of(home: Home) -> None:
    model = lmsd.load("outputs/first")
    assert (model.name, model.images) == ("first", 192)
    assert model.config["net"]["width"] == 16
