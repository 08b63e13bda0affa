"""A run opened from one checkpoint: its spec, its weights, its settings, and nothing of what trained it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import lmsd
from lmsd.checkpoints import KEY, checkpoint_name
from lmsd.engine.checkpoint import save
from lmsd.errors import UserError
from lmsd.rng import Rng
from lmsd.sampling import Direct, DPMSolverPP2M, Tau
from lmsd.sampling.model import check_sampler
from lmsd.spec import build
from lmsd.types import levels

PARTS: dict[str, Any] = {
    "schedule": {"_target_": "lmsd.process.schedules.Article", "steps": 4},
    "conditioner": {"_target_": "lmsd.models.conditioner.LabelConditioner", "classes": 3, "dim": 8},
    "net": {"_target_": "lmsd.models.backbones.MLPBackbone", "width": 16, "depth": 1, "time_dim": 16},
}
SPEC = {
    "_target_": "lmsd.models.parts.from_parts",
    **PARTS,
    "net": {**PARTS["net"], "_partial_": True},
    "channels": 1,
    "image_size": 4,
    "z_dim": 2,
}
CONFIG = {
    "name": "tiny",
    "steps": 3,
    "evaluate": {"steps": "${steps}", "guidance": 1.0, "interval": None},
    "sampler": {"_target_": "lmsd.sampling.Tau", "tau": 1.0},
    "objective": {"drop": 0.0, "warm": {"drop": 0.1}},
    "data": {"channels": 1, "image_size": 4},
    "generator": {"z_dim": 2},
    **PARTS,
}


def written(folder: Path, config: dict[str, Any] = CONFIG, images: int = 64, **own: Any) -> Path:
    """A run's folder with one checkpoint: raw weights, and an average of twice as much."""
    torch.manual_seed(images)
    state = {name: torch.randn(value.shape) / 4 for name, value in build(SPEC).state_dict().items()}
    weights = {f"players.generator.{name}": value for name, value in state.items()}
    mean = {f"ema.generator.16.{name}": 2 * value for name, value in state.items()}
    clock = {"images": images, "updates": 2}
    text = yaml.safe_dump(config)
    own = {"version": 3, "clock": clock, "config": text, "spec": SPEC, "players": ["generator"], **own}
    path = folder / "checkpoints" / checkpoint_name(images)
    save({"state_dict": {**weights, **mean}, KEY: own}, path)
    (folder / "config.yaml").write_text(text)
    (folder / "env.json").write_text(json.dumps({"begun": images}))
    return path


def test_a_model_comes_with_what_made_it(tmp_path: Path) -> None:
    path = written(tmp_path)
    model = lmsd.load(tmp_path)
    assert (model.checkpoint, model.images, model.ema, model.name) == (path, 64, "ema", "tiny")
    assert model.config["evaluate"]["steps"] == 3
    assert yaml.safe_load(model.text) == CONFIG
    assert not model.generator.training
    assert not any(parameter.requires_grad for parameter in model.generator.parameters())
    assert model.generator.image_shape == (1, 4, 4)


def test_images_are_what_the_runs_own_sampling_makes(tmp_path: Path) -> None:
    written(tmp_path)
    model = lmsd.load(str(tmp_path))
    images = model.sample(["2", "0"], seed=5)
    assert (images.dtype, images.shape) == (np.uint8, (2, 4, 4, 1))
    generate = model.generation()
    batch = model.batch(["2", "0"])
    made = levels(generate(batch, Rng(5, batch.position)))
    assert generate.record() == {"sampler": "Tau", "steps": 3, "guidance": 1.0, "nfe": 3.0}
    assert np.array_equal(images, made.permute(0, 2, 3, 1).numpy())
    assert np.array_equal(images[1:], model.sample(["1", "0"], seed=5)[1:]), "an image is its own place's"
    assert not np.array_equal(images, model.sample(["2", "0"], seed=6))
    assert not np.array_equal(images, model.sample(["2", "0"], seed=5, steps=1))
    assert not np.array_equal(images, model.sample(["2", "0"], seed=5, guidance=3.0))
    other = model.generation(sampler=DPMSolverPP2M(), steps=2, guidance=2.0, interval=(0.5, 1.0))
    other(batch, Rng(5, batch.position))
    assert other.record()["interval"] == "0.5 to 1"
    assert other.record()["sampler"] == "DPMSolverPP2M"


def test_weights_are_the_ones_that_are_asked_for(tmp_path: Path) -> None:
    written(tmp_path)
    raw, mean = lmsd.load(tmp_path, ema="raw"), lmsd.load(tmp_path, ema=16)
    assert (raw.ema, mean.ema) == ("raw", "16")
    for first, second in zip(raw.generator.parameters(), mean.generator.parameters(), strict=True):
        assert torch.equal(2 * first, second)
    with pytest.raises(UserError, match=r"step_000000064\.ckpt: .*no EMA '7' of 'generator'; there are 16"):
        lmsd.load(tmp_path, ema=7)


def test_runs_are_found_by_id_last_folder_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = written(Path("outputs/2026-01-01_000000-tiny-00aa"), images=8)
    second = written(Path("outputs/2026-01-01_000000-tiny-00bb"), images=16)
    assert lmsd.load("00aa").checkpoint == lmsd.load(first).checkpoint == first
    assert lmsd.load("last").checkpoint == lmsd.load(str(second.parent)).checkpoint == second
    with pytest.raises(UserError, match="no run 'nowhere' in outputs/"):
        lmsd.load("nowhere")


def test_settings_that_the_run_cannot_sample_with_are_refused(tmp_path: Path) -> None:
    written(tmp_path, {**CONFIG, "objective": {"drop": 0.0}})
    model = lmsd.load(tmp_path)
    with pytest.raises(UserError, match="guidance=2 needs a generator that was trained without captions"):
        model.sample(["1"], guidance=2.0)
    with pytest.raises(UserError, match=r"interval=\[0\.5, 0\.2\] is no \[low, high\]"):
        model.generation(interval=(0.5, 0.2))
    for steps in (0, 9):
        with pytest.raises(UserError, match=f"(steps=|9 steps).*{'1 or more' if not steps else 'chain'}"):
            model.sample(["1"], steps=steps)
    for prompts in ("a red circle", []):
        with pytest.raises(UserError, match="no list of texts"):
            model.sample(prompts)


def test_what_a_checkpoint_must_hold(tmp_path: Path) -> None:
    path = written(tmp_path)
    state = torch.load(path, weights_only=True)
    foreign = {**state, KEY: {"clock": state[KEY]["clock"], "version": 3}}
    save(foreign, path)
    with pytest.raises(UserError, match="holds no spec of a generator"):
        lmsd.load(path)
    save({**state, KEY: {**state[KEY], "spec": {**SPEC, "net": {**SPEC["net"], "depth": 2}}}}, path)
    with pytest.raises(UserError, match=r"lacks net.model.*its spec is of another net"):
        lmsd.load(path)
    save({**state, KEY: {**state[KEY], "spec": PARTS["schedule"]}}, path)
    with pytest.raises(UserError, match="its spec builds a Article and no Generator"):
        lmsd.load(path)
    save(
        {**state, KEY: {**state[KEY], "spec": {"_target_": "os.mkdir", "path": str(tmp_path / "ran")}}}, path
    )
    with pytest.raises(UserError, match=r"'os\.mkdir' may not be built"):
        lmsd.load(path)
    assert not (tmp_path / "ran").exists()


def test_neither_hydra_nor_omegaconf_nor_lightning_is_needed(tmp_path: Path) -> None:
    written(tmp_path)
    code = (
        "import sys, lmsd\n"
        "assert 'torch' not in sys.modules\n"
        f"images = lmsd.load({str(tmp_path)!r}).sample(['1', '2'])\n"
        "assert images.shape == (2, 4, 4, 1)\n"
        "sys.exit(', '.join({name.split('.')[0] for name in sys.modules} "
        "& {'hydra', 'omegaconf', 'lightning', 'lightning_fabric'}) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif("LMSD_TEST_DATA" not in os.environ, reason="LMSD_TEST_DATA names no folder of cases")
def test_a_run_of_version_2_opens() -> None:
    model = lmsd.load(Path(os.environ["LMSD_TEST_DATA"], "cases", "run-v2"))
    assert (model.images, model.ema, model.generator.prediction) == (20032, "ema", "v")
    images = model.sample(["a handwritten three", "a handwritten seven"], seed=1)
    assert images.shape == (2, 8, 8, 1)
    ink = images.astype(int).sum((1, 2, 3)) / 255
    assert (ink > 5).all()
    assert (ink < 40).all(), "digits, and no noise"


def test_odd_values_are_sentences(tmp_path: Path) -> None:
    written(tmp_path)
    model = lmsd.load(tmp_path)
    odd: list[tuple[dict[str, Any], str]] = [
        ({"seed": None}, "seed=None is no seed: give a whole number from 0"),
        ({"seed": -1}, "seed=-1 is no seed"),
        ({"seed": 1.5}, "seed=1.5 is no seed"),
        ({"steps": 2.5}, "steps=2.5 must be a whole number"),
        ({"steps": "4"}, "steps='4' must be a whole number"),
        ({"steps": 1_000_000}, "steps=1000000 is not a number of steps: give 1 to 100000"),
        ({"steps": 9}, "steps=9 on a chain of 4: ask for 4 or less"),
        ({"guidance": "a"}, "guidance='a' must be a finite number"),
        ({"guidance": float("nan")}, "guidance=nan must be a finite number"),
        ({"prompts": None}, "prompts=None is no list of texts"),
        ({"prompts": 5}, "prompts=5 is no list of texts"),
        ({"prompts": "1"}, "prompts='1' is no list of texts"),
        ({"prompts": []}, r"prompts=\[\] is no list of texts"),
        ({"prompts": ["three"]}, "'three' is no class of this run: its prompts are numbers, 0 to 2"),
        ({"prompts": ["3"]}, "'3' is no class of this run"),
        ({"n": 2}, "n=2 is for a run with conditioner=none, and this one reads label"),
    ]
    for given, said in odd:
        with pytest.raises(UserError, match=said):
            model.sample(**{"prompts": ["1"], **given})
    for run in (None, 3, b"x"):
        with pytest.raises(UserError, match="is no run: give last, an id"):
            lmsd.load(run)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="holds no EMA 'None' of 'generator'; there are 16, and raw"):
        lmsd.load(tmp_path, ema=None)  # type: ignore[arg-type]
    generate, batch = model.generation(), model.batch(["1", "2"])
    with pytest.raises(UserError, match="3 positions for 2 samples"):
        generate(batch, Rng(0, torch.arange(3)))
    for shape in ((1, 1, 4, 4), (2, 3, 4, 4), (2, 1, 2, 2)):
        with pytest.raises(UserError, match=r"mask of shape .*: give \[2,1,H,W\]"):
            generate.edit(batch, Rng(0, batch.position), strength=0.5, mask=torch.ones(shape))


def test_the_sampler_takes_what_the_objective_taught(tmp_path: Path) -> None:
    teaches: dict[str, Any] = {"game": {"predict": "previous"}}
    direct = {"_target_": "lmsd.sampling.Direct"}
    check_sampler(Direct(), teaches)
    check_sampler(Tau(), {"game": {"predict": "image"}})
    check_sampler(Direct(), {"reward": {}})
    with pytest.raises(UserError, match=r"the next state .* which Tau does not expect: sampler=direct"):
        check_sampler(Tau(), teaches)
    with pytest.raises(UserError, match=r"which Direct does not expect: another sampler"):
        check_sampler(Direct(), {"game": {"predict": "image"}})
    written(tmp_path, {**CONFIG, "objective": teaches, "sampler": direct})
    model = lmsd.load(tmp_path)
    assert model.sample(["1"]).shape == (1, 4, 4, 1)
    with pytest.raises(UserError, match="sampler=direct"):
        model.generation(sampler=Tau())


def test_a_weaker_model_takes_the_place_of_no_caption(tmp_path: Path) -> None:
    strong = lmsd.load(written(tmp_path / "strong", images=64))
    weak = lmsd.load(written(tmp_path / "weak", images=32))
    batch = strong.batch(["0", "1", "2"])
    made = strong.generation(guidance=2.5, autoguidance=weak)
    images, rng = made(batch, Rng(0, batch.position)), Rng(0, batch.position)
    record = made.record()
    assert (record["nfe"], record["autoguidance"]) == (6, f"{weak.checkpoint}@ema")
    away = strong.generation(guidance=1.0)(batch, rng)
    assert (images - away).abs().max() > 1e-3
    assert not torch.equal(images, strong.generation(guidance=2.5)(batch, rng))
    itself = strong.generation(guidance=2.5, autoguidance=strong)(batch, rng)
    torch.testing.assert_close(itself, away, rtol=0, atol=1e-5)  # x̂₀ + w (x̂₀ − x̂₀)


@pytest.mark.parametrize(
    ("own", "guidance", "said"),
    [
        ({}, 1.0, "autoguidance acts through guidance, and guidance=1"),
        ({"schedule": {**PARTS["schedule"], "steps": 5}}, 2.0, "a model of the same schedule"),
    ],
    ids=["no guidance", "another schedule"],
)
def test_a_weaker_model_that_cannot_help_is_refused(
    own: dict[str, Any], guidance: float, said: str, tmp_path: Path
) -> None:
    strong = lmsd.load(written(tmp_path / "strong"))
    weak = lmsd.load(written(tmp_path / "weak", {**CONFIG, **own}))
    with pytest.raises(UserError, match=said):
        strong.generation(guidance=guidance, autoguidance=weak)


def test_a_weaker_model_of_other_classes_or_sizes_is_refused(tmp_path: Path) -> None:
    data = {**CONFIG["data"], "train": {"buckets": 4}}
    strong = lmsd.load(written(tmp_path / "strong", {**CONFIG, "data": data}))
    weak = lmsd.load(written(tmp_path / "weak"))
    with pytest.raises(UserError, match="size=4x4: this run learned squares of 4"):
        strong.generation(guidance=2.0, autoguidance=weak, size=(4, 4))
    weak.generator.conditioner.classes = 2
    with pytest.raises(UserError, match=r"a model of the same classes, .* has 2 for 3"):
        strong.generation(guidance=2.0, autoguidance=weak)


@pytest.mark.parametrize(
    ("buckets", "size", "said"),
    [
        (None, (8, 16), "size=16x8: this run learned squares of 4 "),
        (4, (4, 8), "size=8x4: this run learned 4x4: take one of these"),
        (4, (64, 64), "size=64x64: this run learned 4x4"),
    ],
    ids=["squares", "another area", "too large"],
)
def test_sizes_that_a_run_has_not_learned_are_refused(
    buckets: int | None, size: tuple[int, int], said: str, tmp_path: Path
) -> None:
    data = {**CONFIG["data"], "train": {"buckets": buckets}}
    model = lmsd.load(written(tmp_path, {**CONFIG, "data": data}))
    with pytest.raises(UserError, match=said):
        model.generation(size=size)
