"""Every option of sample, edit, evaluate and report, changed alone to a value that must matter.

Another result (images, scores, files), or a refusal; where the purpose is a place, that place. A record that
changes while the result does not is a failure.
"""

import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_home import Home, spoken

from lmsd import cli
from lmsd.cli.verbs.edit import EditOptions
from lmsd.cli.verbs.evaluate import EvaluateOptions
from lmsd.cli.verbs.sample import SampleOptions

RESULT, REFUSED, PLACE = "another result", "refused", "another place"

FAST = ["optim.warmup_images=0", "optim.generator.lr=0.02", "optim.decay=constant", "seed=1"]
"""A tiny run learns enough that captions, averages and checkpoints differ."""

SAMPLE = {
    "run": ("run=outputs/nowhere", REFUSED),
    "adapters": (
        "adapters=nowhere",
        REFUSED,
    ),  # tests/tuning and tests/cli/verbs/test_tuned_runs.py have others
    "prompts": ("prompts='[a large blue star, a small red circle]'", RESULT),
    "n": ("n=4", REFUSED),
    "n, without prompts": ("prompts=[] n=2", RESULT),
    "seeds": ("seeds=[3]", RESULT),
    "size": (
        "size=16x8",
        REFUSED,
    ),  # of a run on squares; tests/cli/build/test_sizes_of_batches.py has others
    "steps": ("steps=2", RESULT),
    "guidance": ("guidance=500", RESULT),
    "image_guidance": ("image_guidance=2", REFUSED),
    "interval": ("interval=[500,1000]", REFUSED),
    "interval, guided": ("guidance=500 interval=[0,500]", RESULT),
    "autoguidance": ("autoguidance=last", REFUSED),  # without guidance
    "autoguidance, guided": ("guidance=500 autoguidance=step_000000096.ckpt@raw", RESULT),
    "ema": ("ema=raw", RESULT),
    "checkpoint": ("checkpoint=step_000000096.ckpt", RESULT),
    "sampler": ("sampler=ddim", RESULT),
    "out": ("out=elsewhere.png", PLACE),
}
EDIT = {
    "run": ("run=outputs/nowhere", REFUSED),
    "adapters": (
        "adapters=nowhere",
        REFUSED,
    ),  # tests/tuning and tests/cli/verbs/test_tuned_runs.py have others
    "image": ("image=other.png", RESULT),
    "prompt": ("prompt='a large blue star'", RESULT),
    "strength": ("strength=0.9", RESULT),
    "mask": ("mask=half.png strength=0.5", RESULT),
    "mask, soft": ("mask=soft.png strength=0.5", RESULT),
    "seed": ("seed=3", RESULT),
    "steps": ("steps=2", RESULT),
    "guidance": ("guidance=500", RESULT),
    "image_guidance": ("image_guidance=2", REFUSED),
    "interval": ("interval=[0,1000]", REFUSED),
    "interval, guided": ("guidance=500 interval=[0,1]", RESULT),
    "autoguidance": ("autoguidance=last", REFUSED),  # without guidance
    "autoguidance, guided": ("guidance=500 autoguidance=step_000000096.ckpt@raw", RESULT),
    "ema": ("ema=raw", RESULT),
    "checkpoint": ("checkpoint=step_000000096.ckpt", RESULT),
    "sampler": ("sampler=ddim", RESULT),
    "out": ("out=edited.png", PLACE),
}
EVALUATE = {
    "run": ("run=outputs/nowhere", REFUSED),
    "adapters": (
        "adapters=nowhere",
        REFUSED,
    ),  # tests/tuning and tests/cli/verbs/test_tuned_runs.py have others
    "split": ("split=val", RESULT),
    "n": ("n=20", RESULT),
    "seeds": ("seeds=[5]", RESULT),
    "steps": ("steps=2", RESULT),
    "guidance": ("guidance=500", RESULT),
    "interval": ("interval=[500,1000]", REFUSED),
    "interval, guided": ("guidance=500 interval=[0,500]", RESULT),
    "autoguidance": ("autoguidance=last", REFUSED),  # without guidance
    "autoguidance, guided": ("guidance=500 autoguidance=step_000000096.ckpt@raw", RESULT),
    "ema": ("ema=raw", RESULT),
    "checkpoint": ("checkpoint=step_000000096.ckpt", RESULT),
    "sampler": ("sampler=ddim", RESULT),
    "extractor": ("extractor=clip", REFUSED),
    "weights": ("weights=nowhere", REFUSED),
    "shards": ("shards=data/shapes/val-*.tar", RESULT),
    "families": ("families=none", PLACE),  # 24 images are too few for any
    "families, unknown": ("families=[nowhere]", REFUSED),
    "keep": ("keep=[images]", PLACE),
    "overlap": ("split=train overlap=label", RESULT),
    "robustness": ("robustness=true", PLACE),
}


def test_the_tables_name_every_option() -> None:
    for kind, table in ((SampleOptions, SAMPLE), (EditOptions, EDIT), (EvaluateOptions, EVALUATE)):
        assert {name.partition(",")[0] for name in table} == set(options_of(kind))


def options_of(kind: type[Any]) -> Iterator[str]:
    for field in fields(kind):
        yield from options_of(field.type) if is_dataclass(field.type) else (field.name,)


def words(text: str) -> list[str]:
    import shlex

    return shlex.split(text)


@pytest.fixture
def pictures(home: Home) -> Home:
    generator = np.random.default_rng(0)
    for name in ("image", "other"):
        Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(f"{name}.png")
    half = np.zeros((16, 16), np.uint8)
    half[:, :8] = 255
    Image.fromarray(half).save("half.png")
    half[:, :8] = 130
    Image.fromarray(half).save("soft.png")
    return home


@pytest.fixture
def learned(home: Home) -> Home:
    """A run that was trained without captions too, so that guidance is for it."""
    if not Path("outputs/dropped").is_dir():
        from tiny_home import ALONE

        drop = ["objective.caption_dropout=0.3", "name=dropped", "run_dir=outputs/dropped"]
        spoken(["train", *ALONE, "data.shards=data/shapes", "objective=denoising", *drop, *FAST])
    return home


def run_of(verb: str, base: list[str], changed: str, capsys: pytest.CaptureFixture[str]) -> int:
    capsys.readouterr()
    keys = {word.partition("=")[0] for word in words(changed)}
    return cli.run([verb, *(word for word in base if word.partition("=")[0] not in keys), *words(changed)])


def pixels(path: str) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path)))


@pytest.mark.parametrize("name", SAMPLE)
def test_of_sample(name: str, learned: Home, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["run=outputs/dropped", "prompts='[a red circle, a blue ring]'", "out=base.png"]
    if not Path("base.png").is_file():
        assert cli.run(["sample", *base]) == 0
    option, what = SAMPLE[name]
    base[-1] = "out=changed.png"
    code = run_of("sample", base, option, capsys)
    assert code == (2 if what == REFUSED else 0), capsys.readouterr().err
    if what == RESULT:
        assert not torch.equal(pixels("changed.png"), pixels("base.png"))
    if what == PLACE:
        assert torch.equal(pixels("elsewhere.png"), pixels("base.png"))


@pytest.mark.parametrize("name", EDIT)
def test_of_edit(name: str, learned: Home, pictures: Home, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["run=outputs/dropped", "image=image.png", "prompt='a red circle'", "out=was.png"]
    if not Path("was.png").is_file():
        assert cli.run(["edit", *base]) == 0
    option, what = EDIT[name]
    base[-1] = "out=is.png"
    code = run_of("edit", base, option, capsys)
    told = capsys.readouterr().err
    assert code == (2 if what == REFUSED else 0), told
    if what == REFUSED:
        return
    where = "edited.png" if what == PLACE else "is.png"
    assert torch.equal(pixels(where), pixels("was.png")) is (what == PLACE)
    record = json.loads(Path(where).with_suffix(".json").read_text())
    done, steps = record["steps_done"], record["steps"]
    assert f"note: {done} of {steps} steps are done (strength={record['strength']:g})" in told
    if name == "interval, guided":
        assert run_of("edit", ["run=outputs/dropped", "image=image.png", "prompt='a red circle'"],
                      "guidance=500 out=guided.png", capsys) == 0  # fmt: skip
        assert not torch.equal(pixels("is.png"), pixels("guided.png"))
        assert record["interval"] == "0 to 1"
    if name.startswith("mask"):
        assert torch.equal(pixels("is.png")[:, 8:], pixels("image.png")[:, 8:]), "black keeps its bytes"


@pytest.mark.parametrize("name", EVALUATE)
def test_of_evaluate(name: str, learned: Home, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["run=outputs/dropped", "n=24", "seeds=[0]"]
    known = Path("base_scores.json")
    if not known.is_file():
        assert cli.run(["evaluate", *base]) == 0, capsys.readouterr().err
        known.write_text(Path("outputs/dropped/eval/test/metrics.json").read_text())
    option, what = EVALUATE[name]
    code = run_of("evaluate", base, option, capsys)
    assert code == (2 if what == REFUSED else 0), capsys.readouterr().err
    if what == REFUSED:
        return
    split = next((w.partition("=")[2] for w in words(option) if w.startswith("split=")), "test")
    found = json.loads(Path(f"outputs/dropped/eval/{split}/metrics.json").read_text())
    before = json.loads(known.read_text())
    assert (found["scores"] == before["scores"]) is (what == PLACE)
    if name == "keep":
        assert list(Path("outputs/dropped/eval/test/kept").rglob("*.png"))


def test_of_report(home: Home, scored: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its one option is a place."""
    assert cli.run(["report", "outputs/first", "out=page.html"]) == 2
    assert "out= is the page of a comparison" in capsys.readouterr().err
