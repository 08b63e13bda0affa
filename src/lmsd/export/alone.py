"""What a folder draws without lmsd's samplers: by its loop as one program, and by its `sample.py`.

Both are given the prompts and the seed of the model's own images, and compared with these.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmsd.export.base import Row
from lmsd.export.gate import Limits, asked, drawn, psnr
from lmsd.export.plan import noisy, plan
from lmsd.export.standalone import PROGRAM, TABLE
from lmsd.models.exported import manifest_in
from lmsd.models.runtimes import Program, program
from lmsd.rng import Rng
from lmsd.sampling.model import Model
from lmsd.types import Batch, levels

SEED = 0


def rows(folder: Path, model: Model, other: Model, limits: Limits) -> Iterator[Row]:
    """The worst image of each way that the folder has.

    other: the folder, opened, whose text encoder the loop's condition comes from.
    """
    batch = asked(model, limits.n)
    own = drawn(model.generation(), batch, seed=SEED)
    opens = manifest_in(folder)["opens"]
    if "loop" in opens["programs"]:
        loop = program(opens["runtime"], folder, opens["programs"]["loop"])
        images = levels(looped(loop, other, batch)["images"])
        yield Row("PSNR of the worst image, loop, dB", psnr(own, images), limits.psnr, at_least=True)
    if (folder / TABLE).is_file():
        images = torch.from_numpy(by_program(folder, batch)).permute(0, 3, 1, 2)
        yield Row(f"PSNR of the worst image, {PROGRAM}, dB", psnr(own, images), limits.psnr, at_least=True)


def looped(loop: Program, model: Model, batch: Batch) -> dict[str, Tensor]:
    """The outputs of the whole loop for the noise that sampling draws."""
    generator, table = model.generator, plan(model.generation())
    rng, shape = Rng(SEED, batch.position), generator.shape
    cond = vars(generator.condition(batch))
    null = vars(generator.condition(batch, torch.ones(len(batch), dtype=torch.bool)))
    given: dict[str, Tensor | None] = {"x_T": rng.normal(shape, "x_T"), **cond}
    given |= {f"null_{name}": value for name, value in null.items()}
    steps = range(int(table["steps"]))
    if generator.z_dim:
        given["z"] = torch.stack([rng.at(k).normal((generator.z_dim,), "z") for k in steps], dim=1)
    if noisy(table):
        given["noise"] = torch.stack([rng.at(k).normal(shape, "step") for k in noisy(table)], dim=1)
    return loop(given)


def by_program(folder: Path, batch: Batch) -> Any:
    """The images of the folder's own program, uint8 [n,H,W,C]."""
    told = importlib.util.spec_from_file_location("lmsd_exported_sample", folder / PROGRAM)
    assert told is not None
    assert told.loader is not None
    module = importlib.util.module_from_spec(told)
    told.loader.exec_module(module)
    label = [] if batch.label is None else batch.label.tolist()
    prompts = batch.text or [str(number) for number in label] or [""] * len(batch)
    return module.Model(folder).draw(prompts, SEED)
