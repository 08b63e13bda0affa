"""`lmsd compress` on the command line: a run like any other, which loads, resumes and is exported."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_home import TINY, Home, inside, spoken

import lmsd
from lmsd import checkpoints
from lmsd.cli.runs import store
from lmsd.cli.verbs.compress import CompressOptions, main, taught
from lmsd.tuning.pruning import Cut

TO = "outputs/small"


@pytest.fixture(scope="module")
def small(made: Home) -> Path:
    """The first run, a twentieth smaller, after three batches of learning."""
    with inside(made.folder):
        assert spoken(
            ["compress", "run=outputs/first", "prune=0.05", f"to={TO}", "images=96", "n=16"]
        ).endswith(f"{TO}\n")
    return Path(TO)


@pytest.mark.slow
def test_the_result_is_a_run_with_its_lineage(home: Home, small: Path) -> None:
    record = json.loads((small / "compress.json").read_text())
    base = checkpoints.newest(Path("outputs/first/checkpoints"))
    assert base is not None
    assert (record["run"], record["checkpoint"]) == ("first", base.name)
    assert record["sha256"] == json.loads(base.with_suffix(".json").read_text())["sha256"]
    assert record["saved"] >= 0.05
    assert record["flops"]["after"] <= 0.95 * record["flops"]["before"]
    assert store.status(small)["state"] == "done"
    model, uncut, untaught = (lmsd.load(each) for each in (small, "outputs/first", f"{TO}-cut"))
    sizes = [sum(p.numel() for p in each.generator.net.parameters()) for each in (model, uncut, untaught)]
    assert sizes[0] == sizes[2] < sizes[1]
    assert model.spec["net"]["kept"] == untaught.spec["net"]["kept"]
    lines = [json.loads(line) for line in (small / "metrics.jsonl").read_text().splitlines()]
    assert any("generator/imitation" in line for line in lines)
    assert any("discriminator/loss" in line for line in lines), "the adversary plays"
    assert model.sample(["a red circle"]).shape == uncut.sample(["a red circle"]).shape


@pytest.mark.slow
def test_it_resumes_to_the_bit(home: Home, small: Path) -> None:
    """From its first checkpoint to its end again."""
    again = Path("outputs/again")
    shutil.copytree(small, again)
    whole = checkpoints.read(again)["state_dict"]
    first, *later = checkpoints.manifests(again / "checkpoints")
    assert later
    for path in later:
        path.unlink()
        path.with_suffix(".json").unlink()
    store.set_status(again, state="interrupted", images=checkpoints.images_of(first))
    spoken(["train", f"resume={again}"])
    found = checkpoints.read(again)["state_dict"]
    assert found.keys() == whole.keys()
    assert all(torch.equal(value, whole[name]) for name, value in found.items() if torch.is_tensor(value))


@pytest.mark.slow
def test_it_leaves_as_safetensors_and_onnx_and_not_as_diffusers(
    home: Home, small: Path, refused: Callable[..., str]
) -> None:
    spoken(["export", f"run={small}", "format=safetensors", "to=out/small"])
    one, two = (lmsd.load(each).sample(["a ring"], seed=3) for each in (small, "out/small"))
    assert np.array_equal(one, two)
    pytest.importorskip("onnxruntime")
    spoken(["export", f"run={small}", "format=onnx", "to=out/small_onnx"])
    told = refused("export", f"run={small}", "format=diffusers", "to=out/small_diffusers")
    assert "diffusers has no counterpart of a net that was cut (lmsd compress)" in told


@pytest.mark.slow
def test_what_was_cut_is_cut_further_and_without_learning(home: Home) -> None:
    deep = [word for word in TINY if word != "net.depth=1"]
    words = ["net.depth=3", "images=32", "data.shards=data/shapes", "evaluate.n=0", "run_dir=outputs/deep"]
    spoken(["train", *deep, *words])
    for run, to in (("deep", "less"), ("less", "least")):
        spoken(
            [
                "compress",
                f"run=outputs/{run}",
                "prune=0.05",
                f"to=outputs/{to}",
                "images=0",
                "n=16",
                "rounds=1",
            ]
        )
    models = [lmsd.load(f"outputs/{name}") for name in ("deep", "less", "least")]
    counts = [sum(p.numel() for p in each.generator.net.parameters()) for each in models]
    assert counts[2] < counts[1] < counts[0]
    assert "inner" not in models[2].spec["net"]["inner"], "one cut of the whole"


def test_a_run_of_many_sizes_is_taught_in_squares(home: Home) -> None:
    """The teacher's game has a discriminator, which `data.train.buckets=` is refused for."""
    config = store.config_of(Path("outputs/first"))
    config.data.train.buckets = 8
    chosen = CompressOptions(run="first", prune=0.3, to=Path("x"))
    made = taught(lmsd.load("outputs/first"), config, Cut({}, 1, 1), chosen, Path("x-cut"))
    assert made.data.train.buckets is None
    assert config.data.train.buckets == 8


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run=outputs/first", "prune=0.3"], "lmsd compress needs to="),
        (["run=outputs/first", "to=x"], "lmsd compress needs prune="),
        (["run=outputs/first", "to=x", "prune=30"], "prune=30"),
        (["run=outputs/first", "to=data", "prune=0.3"], "to=data: data exists: name a new folder"),
        (["run=outputs/none", "to=x", "prune=0.3"], "no run 'outputs/none'"),
        (
            ["run=outputs/first", "to=x", "prun=0.3"],
            "unknown option 'prun' of lmsd compress; did you mean prune",
        ),
        (["run=outputs/first", "to=x", "prune=0.95", "n=8"], "can be saved at most: ask for less"),
    ],
    ids=lambda value: str(len(value)),
)
def test_mistakes(home: Home, refused: Callable[..., str], words: list[str], said: str) -> None:
    assert said in refused("compress", *words)
    assert not Path("x").exists()


def test_one_that_is_interrupted_says_what_was_taken_out(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while it learns: the folder goes on by resume=, and its record is there."""

    def begun(*_: object) -> None:
        Path("outputs/halted").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr("lmsd.cli.verbs.train.train", begun)
    with pytest.raises(KeyboardInterrupt):
        main(["run=outputs/first", "prune=0.05", "to=outputs/halted", "images=96", "n=16"])
    record = json.loads(Path("outputs/halted/compress.json").read_text())
    assert record["run"] == "first"
    assert record["taken_out"]
    for name in ("halted", "halted-cut"):
        shutil.rmtree(f"outputs/{name}")
