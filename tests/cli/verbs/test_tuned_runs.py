"""Runs of which a part moves: resumed bitwise, the same on two ranks, small, and refused on another base."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_home import on_two_ranks
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
    "plain": ["experiment=pipeline_lora", "tuning.rank=2"],
    "dora": ["experiment=pipeline_lora", "tuning=dora", "tuning.rank=2"],
    "word": [
        "experiment=pipeline_full",
        "tuning=textual_inversion",
        "tuning.word=new",
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
        *((kind, "sd15") for kind in KINDS if kind != "plain"),
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
    on_two_ranks("train", *ranks, "devices=2")
    first, second = weights(content(one), "generator"), weights(content(two), "generator")
    for name, value in first.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(value, second[name], rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def adapted(home):
    """Two runs with adapters on one folder, of other seeds; one with a word; one of a part of the net."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for seed in (0, 1):
            assert cli.run(["train", *words("plain", "sd15", f"run{seed}"), f"seed={seed}"]) == 0
        assert cli.run(["train", *words("word", "sd15", "word")]) == 0
        assert cli.run(["train", *words("part", "sd15", "part")]) == 0
        for name in ("run0", "run1", "word", "part"):
            stir(name)
    return home


def stir(name: str) -> None:
    """Weights as after a long training, so that what they do shows."""
    from lmsd.engine.checkpoint import save

    path = newest(Path(name, "checkpoints"))
    found = read(path)
    draw = torch.Generator().manual_seed(len(name))
    for value in found["state_dict"].values():
        if isinstance(value, Tensor) and value.is_floating_point():
            value += 0.1 * torch.randn(value.shape, generator=draw)
    save(found, path)


def seen(source: str, **options) -> Tensor:
    """x0 of one noise, in float64."""
    generator = lmsd.load(source, **options).generator.double()
    x = torch.linspace(-1, 1, 1024, dtype=torch.float64).view(1, *generator.shape)
    from lmsd.types import Batch

    cond = generator.condition(Batch(x=x, position=torch.arange(1), text=["a <new> circle"]))
    return generator(x, torch.full((1,), 500.0, dtype=torch.float64), cond.map(lambda v: v.double()))


def test_merging_one_run(adapted, monkeypatch, capsys):
    monkeypatch.chdir(adapted)
    assert cli.run(["merge", "run=run0@ema", "to=merged"]) == 0
    torch.testing.assert_close(seen("merged", ema="raw"), seen("run0"), rtol=0, atol=1e-5)
    record = json.loads(Path("merged", "merge.json").read_text())
    assert record["parts"][0]["source"] == "run0@ema"
    assert len(record["parts"][0]["sha256"]) == 64
    assert cli.run(["sample", "run=merged", "prompts=a", "steps=2"]) == 0
    assert (
        cli.run(["train", *words("part", "sd15", "from-merged"), "init_from=merged", "tuning.modules=null"])
        == 0
    )
    assert cli.run(["merge", "run=run0@ema", "to=merged"]) == 2
    assert "to=merged exists" in capsys.readouterr().err
    assert cli.run(["merge", "run=part", "to=other"]) == 2
    assert "has no adapters, and none are named" in capsys.readouterr().err
    assert cli.run(["merge", "runs=[run0]", "to=other"]) == 2
    assert cli.run(["merge", "runs=[run0,part]", "to=other"]) == 2
    assert "has another generator than run0" in capsys.readouterr().err


def test_soups(adapted, monkeypatch, capsys):
    monkeypatch.chdir(adapted)
    assert cli.run(["merge", "runs=[run0,run0]", "to=same"]) == 0
    torch.testing.assert_close(seen("same", ema="raw"), seen("run0", ema="raw"), rtol=0, atol=1e-5)
    assert cli.run(["merge", "runs=[run0,run1]", "rank=4", "to=soup"]) == 0
    assert cli.run(["merge", "run=run0", "adapters=[run1]", "to=both"]) == 0
    capsys.readouterr()
    assert cli.run(["merge", "runs=[part,part@ema]", "how=greedy", "n=16", "to=greedy"]) == 2
    assert "for which 16 images are too few: raise n=" in capsys.readouterr().err
    assert not Path("greedy").exists()
    assert cli.run(["sample", "run=soup", "prompts=a", "steps=2"]) == 0


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("run0", "lora"),
        ("run0", "kohya"),
        ("word", "embedding"),
        ("run0", "safetensors"),
        ("run0", "diffusers"),
    ],
)
def test_an_exported_run_is_the_run(adapted, monkeypatch, name, format):
    monkeypatch.chdir(adapted)
    to = f"{name}-{format}"
    assert cli.run(["export", f"run={name}", f"format={format}", f"to={to}", "steps=2"]) == 0
    torch.testing.assert_close(seen(to), seen(name), rtol=0, atol=1e-5)
    assert json.loads(Path(to, "parity.json").read_text())["held"]


def test_files_begin_runs_and_are_sampled_with(adapted, monkeypatch, capsys):
    monkeypatch.chdir(adapted)
    if not Path("run0-lora").exists():
        assert cli.run(["export", "run=run0", "format=lora", "to=run0-lora", "steps=2"]) == 0
    file = "run0-lora/pytorch_lora_weights.safetensors"
    assert cli.run(["train", *words("plain", "sd15", "from-file"), f"init_from={file}", "images=4"]) == 0
    sampled = ["sample", "prompts=a", "steps=2", "image_size=32", "pipeline=sd15"]
    assert cli.run([*sampled, f"adapters=[{file}*0.5, run1@ema]", "out=with.png"]) == 0
    assert cli.run([*sampled, "out=without.png"]) == 0
    assert Path("with.png").read_bytes() != Path("without.png").read_bytes()
    assert (
        json.loads(Path("with.json").read_text())["adapters"]
        == "pytorch_lora_weights.safetensors*0.5, run1@ema*1"
    )
    capsys.readouterr()
    assert cli.run(["train", *words("plain", "sd15", "refused"), "init_from=part/none.safetensors"]) == 2
    assert cli.run(["export", "run=part", "format=lora", "to=nothing"]) == 2
    assert "has no adapters, which tuning=lora makes" in capsys.readouterr().err
    assert cli.run(["export", "run=run0", "format=embedding", "to=nothing"]) == 2
    assert "has learned no word" in capsys.readouterr().err
    assert cli.run(["export", "run=word", "format=onnx", "to=nothing"]) == 2
    assert "tuned otherwise than by adapters of its net alone" in capsys.readouterr().err
