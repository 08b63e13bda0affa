"""A run whose images go through a codec: every verb gives images, and none of them knows of it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_home import ALONE, TINY, Home, inside, on_two_ranks, spoken

import lmsd
from lmsd import checkpoints
from lmsd.models.autoencoder import _decoder, _encoder

CODECS = {
    "unshuffle": ["codec=unshuffle", "codec.factor=4", "codec.scale=1.5", "codec.shift=0.1"],
    "taef2": ["codec=taef2", "codec.path=taef2", "codec.statistics=statistics.json"],
}
DATA = "data.shards=data/shapes"


@pytest.fixture(scope="module", params=CODECS)
def run(request: pytest.FixtureRequest, made: Home) -> str:
    """A finished run in latents; taef2 with weights that learned nothing, which is enough for shapes."""
    name, folder = str(request.param), f"outputs/{request.param}"
    with inside(made.folder):
        if name == "taef2":
            torch.manual_seed(0)
            Path("taef2").mkdir()
            for half, net in (("encoder", _encoder(64, 32)), ("decoder", _decoder(64, 32))):
                torch.save(net.state_dict(), f"taef2/taef2_{half}.pth")
            assert "32 channels" in spoken(["data", "statistics", *TINY, *CODECS[name], DATA, "images=200"])
        said = spoken(["train", *TINY, *CODECS[name], DATA, f"run_dir={folder}", f"name={name}"])
        assert "192 images" in said
    return folder


@pytest.fixture(autouse=True)
def _home(home: Home) -> None:
    """Every test works in the home."""


def picture(path: str | Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.mark.slow
def test_scores_are_of_images(run: str) -> None:
    said = spoken(["evaluate", f"run={run}", "split=test", "n=24", "seeds=[0]"])
    record = json.loads(Path(run, "eval/test/metrics.json").read_text())
    assert record["n"] == 24
    assert record["extractor"].split("@")[0] in said
    assert list(Path(run, "samples").glob("step_*.png"))
    lines = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    assert any("discriminator/accuracy_val" in line for line in lines)


def test_samples_and_edits_are_images(run: str) -> None:
    grid = Path(spoken(["sample", f"run={run}", "prompts=[a red circle,a blue star]"]).strip())
    again = Path(spoken(["sample", f"again={grid.with_suffix('.json')}", f"out={run}/again.png"]).strip())
    assert np.array_equal(picture(grid), picture(again))
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    mask = np.zeros((16, 16), np.uint8)
    mask[4:10, 3:12] = 255
    Image.fromarray(pixels).save("pixels.png")
    Image.fromarray(mask).save("mask.png")
    words = ["edit", f"run={run}", "image=pixels.png", "prompt=a blue star"]
    made = picture(spoken([*words, "mask=mask.png"]).strip())
    assert np.array_equal(made[mask == 0], pixels[mask == 0])
    assert (made[mask == 255] != pixels[mask == 255]).mean() > 0.9
    assert picture(spoken([*words, "strength=0.5"]).strip()).shape == (16, 16, 3)


def test_a_notebook_opens_it(run: str) -> None:
    model = lmsd.load(run)
    assert (
        type(model.generator.codec).__name__ == {"unshuffle": "Unshuffle", "taef2": "TAEF2"}[Path(run).name]
    )
    images = model.sample(["a red circle", "a blue star"], seed=3)
    assert (images.shape, images.dtype) == ((2, 16, 16, 3), np.uint8)
    assert np.array_equal(images, lmsd.load(run).sample(["a red circle", "a blue star"], seed=3))
    assert not np.array_equal(images, model.sample(["a red circle", "a blue star"], seed=4))


@pytest.mark.parametrize("objective", ["grpo", "draft"])
def test_a_reward_judges_images(run: str, objective: str) -> None:
    """One update of each: policy gradients look at what is diffused, DRaFT climbs through the codec."""
    folder, codec = f"{run}-{objective}", CODECS[Path(run).name]
    words = [*ALONE, *codec, DATA, f"objective={objective}", "reward@objective.reward=sharpness"]
    words += ["objective.group=4", "images=32", "evaluate.n=0", "optim.warmup_images=0"]
    spoken(["train", *words, f"init_from={run}", f"run_dir={folder}"])
    before, after = (checkpoints.read(Path(path))["state_dict"] for path in (run, folder))
    name = next(key for key in after if key.startswith("players.generator.net.") and key.endswith(".weight"))
    assert not torch.equal(before[name], after[name])
    line = json.loads(Path(folder, "metrics.jsonl").read_text().splitlines()[-1])
    assert np.isfinite(line["generator/reward"])
    assert line["generator/grad_norm"] > 0


def test_a_run_that_lost_its_end_comes_to_the_same_end(run: str) -> None:
    again = Path(f"{run}-again")
    shutil.copytree(run, again)
    for suffix in (".json", ".ckpt"):
        (again / "checkpoints" / f"step_000000192{suffix}").unlink()
    status = json.loads((again / "status.json").read_text())
    (again / "status.json").write_text(json.dumps({**status, "state": "killed"}))
    spoken(["train", f"resume={again}"])
    ours, theirs = (checkpoints.read(folder)["state_dict"] for folder in (again, Path(run)))
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        same = torch.equal(value, theirs[key]) if torch.is_tensor(value) else value == theirs[key]
        assert same, key
    assert not any(".codec." in key and torch.is_tensor(value) for key, value in ours.items())


def apart(one: str, other: str) -> float:
    """The largest difference of two runs' weights and averages, over the largest weight of its tensor."""
    ours, theirs = (checkpoints.read(Path(path))["state_dict"] for path in (one, other))
    assert ours.keys() == theirs.keys()
    pairs = [(value, theirs[key]) for key, value in ours.items() if torch.is_tensor(value) and value.numel()]
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-3)) for a, b in pairs)


@pytest.mark.slow
def test_two_ranks_do_as_one_process(run: str) -> None:
    """Train, resume, evaluate, sample, edit, learn from a reward: to rounding, or to the bit."""
    codec, two = CODECS[Path(run).name], f"{run}-two"
    train = ["train", *TINY, *codec, DATA]
    on_two_ranks(*train, "devices=2", f"run_dir={two}")
    assert 0 < apart(two, run) < 1e-3

    again = Path(f"{two}-again")
    shutil.copytree(two, again)
    for suffix in (".json", ".ckpt"):
        (again / "checkpoints" / f"step_000000192{suffix}").unlink()
    status = json.loads((again / "status.json").read_text())
    (again / "status.json").write_text(json.dumps({**status, "state": "killed"}))
    on_two_ranks("train", f"resume={again}")
    assert apart(str(again), two) == 0

    evaluate = ["evaluate", f"run={two}", "split=test", "n=24", "seeds=[0]"]
    spoken(evaluate)
    alone = Path(two, "eval/test/metrics.json").rename("alone.json").read_text()
    on_two_ranks(*evaluate)
    assert Path(two, "eval/test/metrics.json").read_text() == alone

    Image.fromarray(np.full((16, 16, 3), 200, np.uint8)).save("flat.png")
    sample, edit = ["prompts=[a red circle,a blue star]"], ["image=flat.png", "prompt=a star", "strength=0.5"]
    for words in (["sample", *sample], ["edit", *edit]):
        ours, theirs = (picture(spoken([*words, f"run={path}"]).strip()).astype(int) for path in (two, run))
        assert np.abs(ours - theirs).max() <= 2

    reward = [
        "train",
        *ALONE,
        *codec,
        DATA,
        "objective=grpo",
        "reward@objective.reward=sharpness",
        "objective.group=4",
        "images=64",
    ]
    reward += ["evaluate.n=0", "optim.warmup_images=0", f"init_from={run}"]
    spoken([*reward, f"run_dir={run}-one-grpo"])
    on_two_ranks(*reward, "devices=2", f"run_dir={two}-grpo")
    assert 0 < apart(f"{two}-grpo", f"{run}-one-grpo") < 1e-3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["codec=taef2"], "codec.path has no value"),
        (["codec=taef2", "codec.path=nowhere"], "codec.path=nowhere is no folder"),
        (["codec=taef2", "codec.path=taef2"], "channels of the latents are off"),
        (
            ["codec=taef2", "codec.path=taef2", "codec.statistics=no.json"],
            "codec.statistics=no.json is not there",
        ),
        (["codec=unshuffle", "codec.factor=3"], "16x16 pixels do not divide by its factor, 3"),
        (["codec=unshuffle", "codec.factor=two"], "codec.factor=two is not a whole number"),
        (
            ["codec=none"],
            "codec 'none' not found; available: autoencoder, identity, own, taef2, trained, unshuffle",
        ),
        (["codec=unshuffle", "init_from=outputs/first"], "latents of factor none, as of pixels"),
    ],
)
def test_mistakes_with_codecs(refused: Callable[..., str], words: list[str], said: str) -> None:
    assert said in refused("train", *TINY, DATA, *words)


def test_weights_of_latents_are_no_start_for_pixels(run: str, refused: Callable[..., str]) -> None:
    said = refused("train", *TINY, DATA, f"init_from={run}")
    assert "this run's has none, as of pixels" in said or "build the same net" in said
