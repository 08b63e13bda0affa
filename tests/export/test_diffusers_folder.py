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
from tiny_models import ANCESTRAL

import lmsd
from lmsd.errors import UserError
from lmsd.export import diffusers as kind
from lmsd.export.card import Told
from lmsd.export.folder import export
from lmsd.export.gate import asked, drawn
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


FROM_SCRATCH: dict[str, dict[str, Any]] = {
    "emoji": {"guidance": 2.0},
    "text_unet": {},
    "transformer": {"sampler": ANCESTRAL, "guidance": 1.5, "steps": 5},
    "dit": {"steps": 5},
    "free": {"sampler": ANCESTRAL, "steps": 10},
    "pooled_squares": {"guidance": 1.5},
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name != "emoji" else []) for name in FROM_SCRATCH]
)
def test_a_run_from_scratch_for_plain_diffusers(name: str, tmp_path: Path) -> None:
    model = tiny_models.model(name, **FROM_SCRATCH[name])
    parity = export(model, "diffusers", tmp_path / "out", kind.Options(), Told())
    assert [row.value for row in parity.rows[:2]] == [0.0, 100.0]
    assert parity.rows[2].value > 60, "plain diffusers' own pictures"
    batch = asked(model, 3)
    one, two = (drawn(each.generation(), batch, seed=8) for each in (model, lmsd.load(tmp_path / "out")))
    assert torch.equal(one, two)


def test_text_encoders_are_for_old_readers_too(tmp_path: Path) -> None:
    """Names with text_model., and a tokenizer's vocabulary and merges: what transformers 4 reads."""
    from safetensors import safe_open

    export(tiny_models.model("emoji"), "diffusers", tmp_path / "out", kind.Options(), Told())
    with safe_open(tmp_path / "out" / "text_encoder" / "model.safetensors", "pt") as file:
        assert all(key.startswith("text_model.") for key in file.keys())  # noqa: SIM118 (no dict)
    assert {"vocab.json", "merges.txt", "tokenizer_config.json"} <= {
        path.name for path in (tmp_path / "out" / "tokenizer").iterdir()
    }


@pytest.mark.parametrize(
    ("name", "told", "said"),
    [
        ("digits", {}, "no counterpart of net MLPBackbone"),
        ("emoji", {"sampler": ANCESTRAL}, "no counterpart of sampler Tau here"),
        ("dit", {"steps": 4}, "no counterpart of the knots of Cosine at steps=4"),
    ],
)
def test_what_diffusers_has_no_counterpart_of(
    name: str, told: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        export(tiny_models.model(name, **told), "diffusers", tmp_path / "out", kind.Options(), Told())
    assert not (tmp_path / "out").exists()
