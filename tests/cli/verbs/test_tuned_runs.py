"""Runs of which a part moves: resumed bitwise, the same on two ranks, small, and refused on another base."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import lmsd
from lmsd import cli
from lmsd.checkpoints import KEY, newest, read, roles, weights

sys.path.append(str(Path(__file__).parents[2] / "models"))
from tiny_pipelines import make

pytestmark = pytest.mark.slow
WEIGHTS = "diffusion_pytorch_model.safetensors"
SHORT = ["data.image_size=32", "batch_size=4", "images=16", "checkpoint_every=8", "accelerator=cpu"]
SHORT += ["optim.warmup_images=4", "optim.ema=[8]", "optim.generator.lr=1e-3", "data.shards=shapes"]
KINDS = {
    "lora": ["experiment=pipeline_lora", "tuning.rank=2", "tuning.text=[q_proj,v_proj]"],
    "dora": ["experiment=pipeline_lora", "tuning=dora", "tuning.rank=2"],
    "word": [
        "experiment=pipeline_full",
        "tuning=textual_inversion",
        "tuning.word='<new>'",
        "tuning.vectors=2",
    ],
    "part": ["experiment=pipeline_full", "tuning.modules=[attn2.*]"],
    "dreambooth": ["experiment=pipeline_dreambooth", "tuning.rank=2", "objective.prompts=[a red circle]"],
    "grpo": ["experiment=pipeline_grpo", "tuning.rank=2", "objective.group=2", "steps=4"],
    "game": [
        "experiment=pipeline_lmsd",
        "tuning.rank=2",
        "optim.discriminator.lr=1e-3",
        "discriminator.width=8",
    ],
}
MORE = {"dreambooth": ["objective.own=4", "steps=2"], "game": ["steps=2"]}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    place = tmp_path_factory.mktemp("tuned")
    counts = ["train_count=64", "val_count=32", "test_count=32", "near_duplicates=keep"]
    assert cli.run(["data", "build", "shapes", f"out={place}/shapes", "image_size=16", *counts]) == 0
    for layout in ("sd15", "pixart", "sana"):
        make(layout, place / layout)
    return place


def words(kind: str, layout: str, folder: str) -> list[str]:
    chosen = KINDS[kind] if layout == "sd15" else [w for w in KINDS[kind] if "tuning.text" not in w]
    return [*SHORT, *chosen, *MORE.get(kind, ()), f"generator.path={layout}", f"run_dir={folder}"]


def content(folder: str) -> dict:
    return read(newest(Path(folder, "checkpoints")))


def same(one: dict, other: dict) -> None:
    assert one["state_dict"].keys() == other["state_dict"].keys()
    for name, value in one["state_dict"].items():
        assert not isinstance(value, Tensor) or torch.equal(value, other["state_dict"][name]), name


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        *((kind, "sd15") for kind in KINDS),
        *((kind, layout) for kind in ("lora", "dreambooth", "grpo", "game") for layout in ("pixart", "sana")),
    ],
)
def test_a_run_goes_on_bitwise_and_keeps_what_moves(home, monkeypatch, kind, layout):
    monkeypatch.chdir(home)
    whole, half = f"{kind}-{layout}", f"{kind}-{layout}-half"
    assert cli.run(["train", *words(kind, layout, whole)]) == 0
    shutil.copytree(whole, half)
    for file in Path(half, "checkpoints").glob("*16*"):
        file.unlink()
    status = json.loads(Path(half, "status.json").read_text())
    Path(half, "status.json").write_text(json.dumps(status | {"state": "interrupted", "images": 8}))
    assert cli.run(["train", f"resume={half}"]) == 0
    found = content(whole)
    same(found, content(half))
    moved = dict(lmsd.load(whole, ema="raw").generator.named_parameters())
    raw = weights(found, "generator")
    assert {name for name, value in raw.items() if isinstance(value, Tensor)} == set(moved)
    assert len(lmsd.load(whole).sample(["a red circle"], steps=2)) == 1
    trained = sum(
        v.numel() * 4 for role in roles(found) for v in weights(found, role).values() if isinstance(v, Tensor)
    )
    states = 1 + 1 + 2  # weights, one average, two moments
    assert newest(Path(whole, "checkpoints")).stat().st_size <= 1.1 * trained * states + 256_000


def test_another_base_is_refused(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    assert cli.run(["train", *words("lora", "sd15", "moved")]) == 0
    shutil.move("sd15", "kept")
    shutil.copytree("kept", "sd15")
    try:
        file = Path("sd15", "unet", WEIGHTS)
        tensors = load_file(file)
        tensors["conv_out.bias"] = tensors["conv_out.bias"] + 1e-3
        save_file(tensors, file, metadata={"format": "pt"})
        capsys.readouterr()
        assert cli.run(["sample", "run=moved", "prompts=a", "steps=2"]) == 2
        assert "were trained on a base of digest" in capsys.readouterr().err
    finally:
        shutil.rmtree("sd15")
        shutil.move("kept", "sd15")


def test_adapters_on_a_run_and_weights_from_a_run(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    small = ["experiment=shapes", "objective=denoising", "sampler=ancestral", "net.width=32", "net.depth=1"]
    small += ["conditioner.dim=32", "conditioner.layers=1", "generator.z_dim=0", "evaluate.n=0"]
    few = ["data.shards=shapes", "data.image_size=16", "images=64", "batch_size=16", "optim.ema=[16]"]
    assert cli.run(["train", *small, *few, "run_dir=base"]) == 0
    tuned = ["experiment=shapes", "objective=denoising", "sampler=ancestral", "evaluate.n=0", "generator=run"]
    tuned += ["generator.path=base@ema", "tuning=lora", "tuning.rank=2", *few]
    capsys.readouterr()
    assert cli.run(["train", *tuned, "run_dir=on-run"]) == 0, capsys.readouterr().err
    spec = content("on-run")[KEY]["spec"]
    assert spec["generator"]["path"] == f"{Path.cwd()}/base@ema"
    names = {n for n, v in weights(content("on-run"), "generator").items() if isinstance(v, Tensor)}
    assert names
    assert all("lora_" in name for name in names)
    assert cli.run(["train", *tuned, "run_dir=again", "init_from=on-run@ema", "images=16"]) == 0
    assert cli.run(["evaluate", "run=on-run", "n=16", "split=val"]) == 0
    assert cli.run(["train", *tuned, "net.width=8", "run_dir=refused"]) == 2
    assert "generator=run reads its net from the run" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["lora", "word", "part"])
def test_two_ranks_are_one(home, monkeypatch, kind):
    monkeypatch.chdir(home)
    one, two = f"{kind}-one", f"{kind}-two"
    plain = [w for w in words(kind, "sd15", one) if not w.startswith("optim.generator.lr")]
    plain += ["optimizer@optim.generator=sgd", "optim.generator.lr=0.1"]
    assert cli.run(["train", *plain]) == 0
    ranks = [w if not w.startswith("run_dir") else f"run_dir={two}" for w in plain]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command += ["-m", "lmsd.cli", "train", *ranks, "devices=2"]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=500)
    first, second = weights(content(one), "generator"), weights(content(two), "generator")
    for name, value in first.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(value, second[name], rtol=1e-4, atol=1e-6)
