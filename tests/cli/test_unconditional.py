"""Images without captions and classes, and classes alone, from a folder to the report."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_home import TINY, Home, spoken

import lmsd
from lmsd.cli.config.compose import load
from lmsd.errors import UserError
from lmsd.evaluation.grid import sample_grid
from lmsd.types import scale

Refused = Callable[..., str]
SMALL = [word for word in TINY if not word.startswith(("conditioner", "evaluate.n"))]
WORDS = ["train", *SMALL, "evaluate.n=8"]


@pytest.fixture
def folders(home: Home) -> Home:
    """data/alone without captions and classes, data/classed with classes."""
    if not Path("data/classed").is_dir():
        generator = np.random.default_rng(0)
        for kind in ("alone", "classed"):
            Path(kind).mkdir()
        for number in range(120):
            picture = generator.integers(0, 20, (16, 16, 3), dtype=np.uint8)
            row, column = generator.integers(0, 10, 2)
            picture[row : row + 6, column : column + 6] = generator.integers(60, 236, 3)
            for kind in ("alone", "classed"):
                Image.fromarray(picture).save(f"{kind}/{number:03d}.png")
            Path(f"classed/{number:03d}.cls").write_text(str(number % 3))
        for kind in ("alone", "classed"):
            words = [f"path={kind}", f"out=data/{kind}", "image_size=16", "near_duplicates=keep"]
            said = spoken(["data", "build", "folder", *words])
            assert "images without captions; dropped: none" in said
            assert "120 images without captions, which train with conditioner=none" in said
    return home


@pytest.fixture
def free(folders: Home) -> Path:
    """A run of images alone."""
    folder = Path("outputs/free")
    if not folder.is_dir():
        said = spoken(
            [*WORDS, "data.shards=data/alone", "conditioner=none", "name=free", f"run_dir={folder}"]
        )
        assert f"Report: {folder}/report.html" in said
    return folder


def pixels(path: str) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path)))


def test_images_alone_are_trained_and_scored(free: Path) -> None:
    lines = [json.loads(line) for line in (free / "metrics.jsonl").read_text().splitlines()]
    assert {"adversary", "d_accuracy"} <= {name.rpartition("/")[2] for line in lines for name in line}
    assert spoken(["data", "index", "data/alone"]).count("index ") == 3
    assert "ok   data/alone" in spoken(["doctor", "data/alone"])


def test_a_number_of_images_is_sampled_remade_and_loaded(free: Path, refused: Refused) -> None:
    words = ["sample", "run=outputs/free", "n=6", "seeds=[3]"]
    spoken([*words, "out=free-a.png"])
    record = json.loads(Path("free-a.json").read_text())
    assert (record["n"], record["prompts"]) == (6, [])
    spoken(["sample", "again=free-a.json", "out=free-b.png"])
    images = lmsd.load("outputs/free").sample(n=6, seed=3)
    assert torch.equal(pixels("free-a.png"), pixels("free-b.png"))
    ours = sample_grid(list(scale(torch.from_numpy(images).permute(0, 3, 1, 2))), [""] * 6)
    assert np.array_equal(np.asarray(ours), pixels("free-a.png").numpy())
    with pytest.raises(UserError, match="say how many images"):
        lmsd.load("outputs/free").sample(["a star"])
    assert "trained without captions and classes (conditioner=none)" in refused(
        "sample", "run=outputs/free", "prompts=a star"
    )
    assert "this run has only these (conditioner=none): take guidance=1" in refused(*words, "guidance=3")
    assert "guidance=3 weighs" in refused("evaluate", "run=outputs/free", "guidance=3")


def test_an_image_is_edited_without_a_prompt(free: Path, refused: Refused) -> None:
    words = ["edit", "run=outputs/free", "image=alone/001.png", "out=freely.png"]
    spoken(words)
    assert not torch.equal(pixels("freely.png"), pixels("alone/001.png"))
    assert "leave it out" in refused(*words, "prompt=a star")
    bare = refused("edit", "run=outputs/first", "image=alone/001.png")
    assert "lmsd edit needs prompt='a blue star' for this run" in bare


def test_scores_compare_images_and_nothing_else(free: Path) -> None:
    spoken(["evaluate", "run=outputs/free", "split=train", "overlap=label", "n=90", "seeds=[0]"])
    found = json.loads((free / "eval/train/metrics.json").read_text())
    names = {name.partition("[")[0] for name in found["scores"]}
    assert {"kid", "kid_floor"} <= names
    assert not names & {"right", "is", "clip_score"}
    assert not found.get("slices")
    assert "<html" in (free / "report.html").read_text()


def test_captions_that_are_there_are_not_held_against_a_run_that_reads_none(home: Home) -> None:
    words = ["train", *SMALL, "evaluate.n=24", "data.shards=data/shapes", "conditioner=none"]
    spoken([*words, "name=blind", "run_dir=outputs/free_blind"])
    lines = [json.loads(line) for line in Path("outputs/free_blind/metrics.jsonl").read_text().splitlines()]
    names = {name for line in lines for name in line}
    assert not [name for name in names if "right" in name]
    spoken(["sample", "run=outputs/free_blind", "n=2", "out=blind.png"])


def test_it_goes_on_where_it_was_and_longer(free: Path) -> None:
    words = [*WORDS, "data.shards=data/alone", "conditioner=none", "evaluate.n=0"]
    spoken([*words, "run_dir=outputs/free_half", "images=96"])
    said = spoken(["train", "extend=outputs/free_half", "images=192", "run_dir=outputs/free_longer"])
    assert "outputs/free_longer" in said
    assert json.loads(Path("outputs/free_longer/status.json").read_text())["images"] == 192
    spoken(["train", *words[1:], "run_dir=outputs/free_lent", "init_from=outputs/free", "debug=dry"])


def test_classes_alone_are_a_condition(folders: Home, refused: Refused, capsys) -> None:
    folder, words = Path("outputs/classed"), [*WORDS, "data.shards=data/classed"]
    label = ["conditioner=label", "conditioner.classes=3"]
    alone = [word for word in words if not word.startswith("discriminator.")]
    spoken([*alone, *label, "name=classed", f"run_dir={folder}", "objective=denoising"])
    capsys.readouterr()
    spoken(["sample", "run=outputs/classed", "n=5", "out=classes.png"])
    assert "note: images of the classes 0 to 2 in turn" in capsys.readouterr().err
    assert json.loads(Path("classes.json").read_text())["prompts"] == ["0", "1", "2", "0", "1"]
    spoken(["sample", "run=outputs/classed", "prompts=[0,1,2,0,1]", "out=same.png"])
    images = lmsd.load("outputs/classed").sample(["0", "1", "2", "0", "1"])
    assert len(images) == 5
    for prompt in ("a star", "3", "-1"):
        assert f"'{prompt}' is no class of this run" in refused(
            "sample", f"run={folder}", f"prompts='{prompt}'"
        )
    spoken(["edit", "run=outputs/classed", "image=classed/001.png", "prompt=2", "out=classed.png"])
    spoken(["evaluate", "run=outputs/classed", "split=train", "overlap=label", "n=60", "seeds=[0]"])
    found = json.loads((folder / "eval/train/metrics.json").read_text())
    assert "right" in found["scores"]
    assert "take conditioner=label for their classes" in refused(*words)
    spoken([*words, "conditioner=none", "debug=dry"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "these shards have no captions (KEY.txt, KEY.json); take conditioner=none"),
        (["conditioner=label"], "these shards have no class labels (KEY.cls); take conditioner=none"),
        (["conditioner=none", "evaluate.guidance=2"], "evaluate.guidance=2"),
        (["conditioner=none", "evaluate.checker=shapes"], "evaluate.checker=shapes is about captions"),
        (["conditioner=none", "sampler=direct"], "Direct does not expect: another sampler"),
        (["conditioner=none", "objective=cgan"], "mismatch.weight=0.5 shows the discriminator"),
    ],
)  # fmt: skip
def test_what_asks_for_captions_is_refused(
    folders: Home, refused: Refused, words: list[str], said: str
) -> None:
    told = refused(*WORDS, "data.shards=data/alone", *words)
    assert said in told
    assert "conditioner=none" in told or "weight=0" in told or "sampler=few_step" in told


def test_a_conditional_run_draws_captions_of_val(home: Home, refused: Refused, capsys) -> None:
    capsys.readouterr()
    spoken(["sample", "run=outputs/first", "n=4", "out=drawn.png"])
    assert "note: images of 4 captions of val" in capsys.readouterr().err
    record = json.loads(Path("drawn.json").read_text())
    assert len(record["prompts"]) == 4
    assert len(set(record["prompts"])) > 1
    listed = ", ".join(record["prompts"])
    spoken(["sample", "run=outputs/first", f"prompts='[{listed}]'", "out=typed.png"])
    spoken(["sample", "again=drawn.json", "out=again.png"])
    assert torch.equal(pixels("drawn.png"), pixels("again.png"))
    model = lmsd.load("outputs/first")
    assert np.array_equal(model.sample(record["prompts"]), model.sample(listed.split(", ")))
    said = refused("sample", "run=outputs/first", "n=500")
    assert "n=500 without prompts= takes captions of the run's val shards, and there are 32; or give" in said
    assert "n=4 is for images without prompts" in refused("sample", "run=outputs/first", "n=4", "prompts=a")
    with pytest.raises(UserError, match=r"n=4 is for a run with conditioner=none, and this one reads text"):
        model.sample(n=4)


def test_no_condition_leaves_out_what_an_experiment_guides_and_checks(capsys) -> None:
    for name, gone in (
        ("cifar10", "evaluate.guidance"),
        ("emoji", "evaluate.guidance"),
        ("shapes", "checker"),
    ):
        config = load([f"experiment={name}", "conditioner=none"])
        assert (config.evaluate.guidance, config.evaluate.checker) == (1.0, None)
        assert gone in capsys.readouterr().err


@pytest.mark.slow
def test_two_ranks_make_one_run(folders: Home) -> None:
    words = [*WORDS, "data.shards=data/alone", "conditioner=none", "images=96", "devices=2"]
    launch = [sys.executable, "-m", "lmsd.cli", *words, "run_dir=outputs/free_pair"]
    done = subprocess.run(launch, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(Path("outputs/free_pair/status.json").read_text())["state"] == "done"
