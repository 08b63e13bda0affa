"""`format=diffusers`: a pipeline's run goes there and comes back, and plain diffusers draws with its net."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

sys.path.append(str(Path(__file__).parents[1] / "models"))

import tiny_pipelines

import lmsd
from lmsd.errors import UserError
from lmsd.export import diffusers as kind
from lmsd.export.card import Told
from lmsd.export.folder import export
from lmsd.models.pipeline import PipelineGenerator, usual
from lmsd.sampling.model import Model
from lmsd.spec import build


def trained(layout: str, folder: Path, **options: Any) -> Model:
    """A pipeline's run whose net has learned something."""
    base = tiny_pipelines.make(layout, folder / layout)
    spec = {"_target_": "lmsd.models.pipeline.from_pipeline", "path": str(base), **options}
    generator: PipelineGenerator = build(spec)
    torch.manual_seed(1)
    with torch.no_grad():
        for value in generator.net.parameters():  # type: ignore[attr-defined]
            value.add_(0.02 * torch.randn_like(value))
    found = usual(base)
    config = {
        "name": layout,
        "sampler": dict(found.sampler),
        "objective": {"caption_dropout": 0.1},
        "evaluate": {"steps": 3, "guidance": 2.0, "interval": None},
    }
    return Model(
        generator=generator.eval().requires_grad_(False),
        checkpoint=Path("none.ckpt"), images=64, ema="ema", text="", config=config, spec=spec,
    )  # fmt: skip


@pytest.mark.parametrize("layout", ["sd15", pytest.param("pixart", marks=pytest.mark.slow)])
def test_there_and_back_without_a_difference(layout: str, tmp_path: Path) -> None:
    model = trained(layout, tmp_path)
    parity = export(model, "diffusers", tmp_path / "out", kind.Options(), Told(base="tiny"))
    assert [row.value for row in parity.rows] == [0.0, 100.0, 0]
    again = lmsd.load(tmp_path / "out")
    prompts = ["a red circle", "a blue star"]
    assert np.array_equal(model.sample(prompts, seed=3), again.sample(prompts, seed=3))
    first, second = (next(iter(each.net.parameters())) for each in (build(model.spec), again.generator))
    assert not torch.equal(first, second), "the trained net, not the base's"
    assert not list((tmp_path / "out").glob("*.ckpt"))


def test_files_of_the_base_net_stay_behind(tmp_path: Path) -> None:
    model = trained("sd15", tmp_path)
    base = Path(model.spec["path"])
    (base / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"half")
    (base / "v1-5-pruned.ckpt").write_bytes(b"pickle")
    (base / ".cache").mkdir()
    export(model, "diffusers", tmp_path / "out", kind.Options(), Told())
    there = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*")}
    assert {"model_index.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json"} <= there
    assert not {".cache", "v1-5-pruned.ckpt", "unet/diffusion_pytorch_model.fp16.safetensors"} & there


def test_a_run_without_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did not begin from a diffusers folder"):
        export(tiny_models.model("digits"), "diffusers", tmp_path / "out", kind.Options(), Told())
