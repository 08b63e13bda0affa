"""Programs of onnxruntime and of torch.export: twenty faultless exports pass the gate and come back."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from tiny_models import ANCESTRAL, DPMPP, HEUN

import lmsd
from lmsd.errors import UserError
from lmsd.export.card import Told
from lmsd.export.folder import export, format_of
from lmsd.files import sha256_of
from lmsd.models.pipeline import from_pipeline
from lmsd.models.runtimes import Program

PROMPTS = ["a red circle", "", "a large blue star"]
SAME: list[tuple[str, str, dict[str, Any]]] = [
    *(
        (name, kind, {})
        for name in ("digits", "shapes", "cifar10", "emoji")
        for kind in ("onnx", "torch_export")
    ),
    ("digits", "onnx", {"seed": 1, "guidance": 3.0, "sampler": ANCESTRAL}),
    ("shapes", "onnx", {"seed": 1, "steps": 20, "sampler": DPMPP}),
    ("cifar10", "torch_export", {"seed": 1, "guidance": 2.0, "sampler": HEUN, "steps": 3}),
    ("emoji", "onnx", {"seed": 1, "steps": 1}),
    *(
        (name, "onnx", {"seed": 2})
        for name in ("text_unet", "transformer", "dit", "labels", "edm", "squares")
    ),
    *((name, "torch_export", {"seed": 2}) for name in ("text_unet", "transformer")),
]


def exported(name: str, kind: str, to: Path, **told: Any) -> tuple[Any, Any]:
    """The model, and what the gate measured."""
    if kind == "onnx":
        pytest.importorskip("onnxruntime", reason="pip install 'lmsd[export]'")
    model = tiny_models.model(name, **told)
    return model, export(model, kind, to, format_of(kind).Options(), Told())


def test_there_are_twenty() -> None:
    assert len(SAME) == 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "told"), SAME, ids=[f"{n}-{k}-{i}" for i, (n, k, _) in enumerate(SAME)]
)
def test_a_faultless_export_passes(name: str, kind: str, told: dict[str, Any], tmp_path: Path) -> None:
    model, parity = exported(name, kind, tmp_path / "out", **told)
    assert parity.held
    again = lmsd.load(tmp_path / "out")
    reads = model.generator.conditioner.reads
    asked: dict[str, Any] = (
        {"n": 3} if reads == "nothing" else {"prompts": ["0", "2", "1"] if reads == "label" else PROMPTS}
    )
    one, two = (each.sample(seed=4, **asked).astype(int) for each in (model, again))
    assert np.abs(one - two).max() <= 1
    assert (one != two).mean() < 1e-3
    for path in (tmp_path / "out").rglob("*"):
        assert str(Path(lmsd.__file__).parents[1]).encode() not in path.read_bytes(), (
            f"{path.name}: a path of ours"
        )


def test_torch_export_by_default(tmp_path: Path) -> None:
    """The cheapest of them, without the loop."""
    model = tiny_models.model("digits", steps=2)
    kind = format_of("torch_export")
    assert export(model, "torch_export", tmp_path / "out", kind.Options(loop=False), Told()).held
    again = lmsd.load(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.pt2")) == ["condition.pt2", "denoiser.pt2"]
    assert np.array_equal(model.sample(PROMPTS, seed=1), again.sample(PROMPTS, seed=1))
    many = [*PROMPTS * 23][:65]
    assert np.array_equal(model.sample(many, seed=1), again.sample(many, seed=1)), "more than one call takes"
    with pytest.raises(UserError, match="holds programs, of which nothing else can be made"):
        export(again, "safetensors", tmp_path / "more", format_of("safetensors").Options(), Told())
    x, t, cond = torch.zeros(1, 1, 8, 8), torch.ones(1), again.generator.condition(again.batch(["a"]))
    with pytest.raises(UserError, match="gives x0 alone"):
        again.generator(x, t, cond, torch.zeros(1, 4), output="native")


def test_programs_are_given_whole_rows_some_at_a_time() -> None:
    """Contiguous, as they were traced: a compiled program reads an expanded tensor's memory as it lies."""
    calls: list[list[torch.Tensor]] = []

    def run(rows: Any) -> list[torch.Tensor]:
        calls.append(list(rows))
        return [rows[0] + rows[1][:, None]]

    found = Program(run, ("x_t", "t"), ("x0",))
    x_t, t = torch.arange(70.0).view(2, 35).t(), torch.ones(1).expand(35)
    assert torch.equal(found({"x_t": x_t, "t": t, "z": None})["x0"], x_t + 1)
    assert [len(x) for x, _ in calls] == [32, 3]
    assert all(each.is_contiguous() for rows in calls for each in rows)
    with pytest.raises(UserError, match="takes x_t, t, and one of them is missing"):
        found({"x_t": x_t, "t": None})


@pytest.mark.slow
def test_the_folders_own_program_draws_the_same_picture(tmp_path: Path) -> None:
    """In a process of its own, where neither torch nor lmsd can be imported."""
    from PIL import Image

    model, _ = exported("cifar10", "onnx", tmp_path / "out", guidance=2.0, sampler=ANCESTRAL)
    for name in ("torch", "lmsd"):
        (tmp_path / "blocked").mkdir(exist_ok=True)
        (tmp_path / "blocked" / f"{name}.py").write_text("raise ImportError('blocked')\n")
    command = [
        sys.executable,
        str(tmp_path / "out" / "sample.py"),
        *PROMPTS,
        "--seed",
        "9",
        "--out",
        "made.png",
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "blocked")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["made-000.png", "made-001.png", "made-002.png"]
    made = np.stack([np.asarray(Image.open(tmp_path / name)) for name in done.stdout.split()]).astype(int)
    there = model.sample(PROMPTS, seed=9).astype(int)
    assert np.abs(made - there).max() <= 1
    assert (made != there).mean() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["knots", "guidance", "letters", "noise"])
def test_faults_in_the_table_are_seen(fault: str, tmp_path: Path) -> None:
    """What sample.py reads is compared too: not only what lmsd.load does."""
    from lmsd.export import alone
    from lmsd.export.gate import Limits

    model, _ = exported("shapes", "onnx", tmp_path / "out", guidance=2.0)
    path = tmp_path / "out" / "sample.json"
    told = json.loads(path.read_text())
    calls = told["plan"]["calls"]
    if fault == "knots":
        for call, later in zip(calls, [*calls[1:], {"t": 0.0}], strict=True):
            call["t"] = later["t"]
    if fault == "guidance":
        told["plan"]["guidance"] = 1.0
    if fault == "letters":
        told["letters"] = told["letters"][1:] + told["letters"][:1]
    if fault == "noise":
        told["plan"]["noise"][0][2] = "step"
    path.write_text(json.dumps(told))
    manifest = json.loads((tmp_path / "out" / "lmsd.json").read_text())
    manifest["files"]["sample.json"] = {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    (tmp_path / "out" / "lmsd.json").write_text(json.dumps(manifest))  # else the damage itself is noticed
    other = tiny_models.model("shapes", guidance=2.0)
    rows = list(alone.rows(tmp_path / "out", model, other, Limits()))
    assert [row.held for row in rows] == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "share"), [("int8", 0.7), ("fp16", 0.7), ("bf16", 0.7)])
def test_fewer_bits_are_smaller_and_near(kind: str, share: float, tmp_path: Path) -> None:
    """On a net of matrix products, and one of convolutions, of which int8 turns little."""
    pytest.importorskip("onnxruntime", reason="pip install 'lmsd[export]'")
    made = format_of("onnx")
    model, sizes = tiny_models.model("shapes", seed=4), {}
    for quantize in (None, kind):
        to = tmp_path / str(quantize)
        parity = export(model, "onnx", to, made.Options(loop=False, quantize=quantize), Told())
        assert parity.held
        sizes[quantize] = (to / "denoiser.onnx").stat().st_size
    assert sizes[kind] < share * sizes[None]
    card = (tmp_path / kind / "README.md").read_text()
    assert f"of the weights are {kind}, and the programs take 0." in card
    assert "compare scores" in card
    one, two = (lmsd.load(tmp_path / name).sample(PROMPTS, seed=1).astype(int) for name in ("None", kind))
    assert 0 < np.abs(one - two).mean() < 6


@pytest.mark.slow
def test_where_eight_bits_bring_nothing_it_says_so(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="pip install 'lmsd[export]'")
    made = format_of("onnx")
    export(
        tiny_models.model("cifar10"),
        "onnx",
        tmp_path / "out",
        made.Options(loop=False, quantize="int8"),
        Told(),
    )
    assert "better leave quantize out" in (tmp_path / "out" / "README.md").read_text()


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = format_of("onnx")
    monkeypatch.setattr(made, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(UserError, match=r"needs onnxscript: pip install 'lmsd\[export\]'"):
        export(tiny_models.model("digits"), "onnx", tmp_path / "out", made.Options(), Told())


def test_what_has_no_net_of_ours_is_refused(tmp_path: Path) -> None:
    from dataclasses import replace

    target = f"{from_pipeline.__module__}.from_pipeline"
    model = replace(tiny_models.model("digits"), spec={"_target_": target, "path": "x"})
    with pytest.raises(UserError, match="was made by from_pipeline, and this format is for nets"):
        export(model, "torch_export", tmp_path / "out", format_of("torch_export").Options(), Told())
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.slow
def test_aoti_compiles_and_loads(tmp_path: Path) -> None:
    import shutil

    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler here")
    model = tiny_models.model("digits", steps=2)
    assert export(model, "aoti", tmp_path / "out", format_of("aoti").Options(), Told()).held
    again = lmsd.load(tmp_path / "out")
    assert np.abs(model.sample(PROMPTS, seed=1).astype(int) - again.sample(PROMPTS, seed=1)).max() <= 1
    package = tmp_path / "out" / "denoiser.pt2"
    package.write_bytes(package.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged or was changed"):
        lmsd.load(tmp_path / "out")
