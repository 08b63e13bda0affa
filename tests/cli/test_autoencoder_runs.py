"""From an autoencoder of one's own to a run in its latents, an edit of its own, and a folder of diffusers."""

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
from lmsd.data.transforms import scale
from lmsd.features.cnn import load_extractor, save_extractor
from lmsd.models.autoencoder import Autoencoder
from lmsd.models.own import TrainedAutoencoder, save
from lmsd.objectives.autoencoding import Autoencoding
from lmsd.objectives.base import Facts
from lmsd.rng import Rng
from lmsd.types import levels

SIZED = [word for word in TINY if not word.startswith(("net.", "discriminator.", "optim.ema"))]
CODEC = [*SIZED, "objective=autoencoder", "codec.widths=[8,8]", "codec.latent_channels=4", "optim.ema=[64]"]
CODEC += ["discriminator.widths=[8,8]", "data.shards=data/shapes", "optim.warmup_images=32"]
LATENT = [*TINY, "data.shards=data/shapes", "codec=trained", "codec.path=own/codec"]
EDIT = [
    *ALONE,
    "data.shards=own/edits",
    "objective=edit",
    "generator.prediction=x0",
    "evaluate.neighbors=false",
]


@pytest.fixture(scope="module")
def run(made: Home) -> str:
    """A finished codec, its statistics, a run in its latents, and a run that edits."""
    with inside(made.folder):
        spoken(["train", *CODEC, "run_dir=own/codec", "objective.width=16"])
        spoken(["data", "statistics", *LATENT, "images=200"])
        spoken(["train", *LATENT, "run_dir=own/latent"])
        counts = ["train_count=256", "val_count=96", "test_count=40", "shard_size=100"]
        spoken(["data", "build", "edits", "out=own/edits", *counts])
        spoken(["train", *EDIT, "run_dir=own/edit"])
    return "own"


@pytest.fixture(autouse=True)
def _home(home: Home) -> None:
    """Every test works in the home."""


@pytest.mark.slow
def test_a_codec_is_scored_by_what_it_gives_back(run: str) -> None:
    """Its record is of reconstructions; PSNR and SSIM stand in the metrics; its classifier is named."""
    record = json.loads(Path(run, "codec/eval/val/metrics.json").read_text())
    assert record["n"] == 24
    assert "sampler" not in record["setup"]
    lines = [json.loads(line) for line in Path(run, "codec/metrics.jsonl").read_text().splitlines()]
    scored = [line for line in lines if "codec/psnr_val" in line]
    assert scored[-1]["codec/psnr_val"] > scored[0]["codec/psnr_val"]
    assert -1 < scored[-1]["codec/ssim_val"] < 1
    assert Path(run, "codec/report.html").stat().st_size > 1000
    content = checkpoints.read(Path(run, "codec"))
    features = content["lmsd"]["objective"]["features"]
    assert features != record["setup"]["extractor_sha256"]
    assert TrainedAutoencoder(f"{run}/codec").told["features"] == features


def test_scores_in_the_features_that_trained_the_codec_are_refused(
    run: str, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    """The classifier of the codec, given as the extractor of a run in its latents."""
    judges = []
    plain = Autoencoding.prepare

    def watched(method: Autoencoding, facts: Facts) -> None:
        judges.append(facts)
        plain(method, facts)

    monkeypatch.setattr(Autoencoding, "prepare", watched)
    spoken(["train", *CODEC, "objective.width=16", "debug=dry"])
    extractor = judges[0].classifier(16, 101)
    assert extractor.recipe.width == 16
    save_extractor(extractor, Path("own/judge"))
    assert load_extractor("own/judge").sha256 == extractor.sha256
    words = ["evaluate", "split=test", "n=24", "seeds=[0]", "weights=own/judge"]
    assert "trained the codec of this run" in refused(*words, f"run={run}/latent")


def test_a_run_in_its_latents_gives_images_and_is_no_codec(run: str, refused: Callable[..., str]) -> None:
    grid = Path(spoken(["sample", f"run={run}/latent", "prompts=[a red circle]"]).strip())
    assert grid.is_file()
    words = [word for word in LATENT if not word.startswith("codec.path")]
    assert "not of an autoencoder" in refused("train", *words, f"codec.path={run}/latent")
    kept = Path(run, "codec/latents.json")
    kept.rename("own/aside.json")
    assert "channels of the latents are off" in refused("train", *LATENT)
    Path("own/aside.json").rename(kept)
    assert "builds a OwnAutoencoder" in refused("sample", f"run={run}/codec", "prompts=[a red circle]")


def test_it_is_a_folder_of_diffusers(run: str) -> None:
    codec = TrainedAutoencoder(f"{run}/codec", statistics=f"{run}/codec/latents.json")
    assert save(codec, Path("own/folder")) < 1e-5
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    again = Autoencoder("own/folder")
    with torch.no_grad():
        torch.testing.assert_close(again.encode(x), codec.encode(x))
        torch.testing.assert_close(again.decode(again.encode(x)), codec.decode(codec.encode(x)))


def test_the_edit_of_a_run_is_its_own(run: str) -> None:
    """The source is seen without a strength: to the last bit, since six updates move no level of 255."""
    rng = np.random.default_rng(0)
    pixels = {n: rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for n in ("one", "other")}
    model = lmsd.load(f"{run}/edit", ema="raw")

    def edited(name: str) -> torch.Tensor:
        Image.fromarray(pixels[name]).save(f"own/{name}.png")
        batch = model.batch(["make it blue"], scale(pixels[name][None]))
        return model.generation(steps=4).edit(batch, Rng(3, batch.position), strength=1.0)

    one, other = edited("one"), edited("other")
    assert torch.equal(edited("one"), one)
    assert not torch.equal(other, one)
    words = ["edit", f"run={run}/edit", "prompt=make it blue", "seed=3", "steps=4", "ema=raw"]
    made = Path(spoken([*words, "image=own/one.png"]).strip())
    assert np.array_equal(np.asarray(Image.open(made)), levels(one[0]).permute(1, 2, 0).numpy())
    record = json.loads(made.with_suffix(".json").read_text())
    assert (record["strength"], record["steps_done"]) == (1.0, 4)
    guided = Path(spoken([*words, "image=own/one.png", "image_guidance=2", "guidance=1.5"]).strip())
    assert json.loads(guided.with_suffix(".json").read_text())["image_guidance"] == "2"


@pytest.mark.parametrize("name", ["codec", "edit"])
def test_killed_and_resumed_it_is_the_unbroken_run(run: str, name: str) -> None:
    again = Path(f"{run}/{name}-again")
    shutil.copytree(Path(run, name), again)
    for suffix in (".json", ".ckpt"):
        (again / "checkpoints" / f"step_000000192{suffix}").unlink()
    status = json.loads((again / "status.json").read_text())
    (again / "status.json").write_text(json.dumps({**status, "state": "killed"}))
    spoken(["train", f"resume={again}"])
    ours, theirs = (checkpoints.read(folder)["state_dict"] for folder in (again, Path(run, name)))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(v, theirs[k]) for k, v in ours.items() if torch.is_tensor(v))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["codec", "edit"])
def test_two_ranks_do_as_one(run: str, name: str) -> None:
    words = {"codec": [*CODEC, "objective.width=16"], "edit": EDIT}[name]
    on_two_ranks("train", *words, "devices=2", f"run_dir={run}/{name}-two")
    ours, theirs = (checkpoints.read(Path(run, n))["state_dict"] for n in (f"{name}-two", name))
    pairs = [(v, theirs[k]) for k, v in ours.items() if torch.is_tensor(v) and v.numel()]
    assert max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-3)) for a, b in pairs) < 1e-3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*EDIT, "generator.sees=nothing"], "set generator.sees=source"),
        ([*EDIT, "data.images=[]"], "data.images=[source]"),
        ([*EDIT, "data.images=[depth]"], "has no member depth.png"),
        ([*CODEC, "codec=identity"], "trains codec=own"),
        ([*CODEC, "codec.widths=[8,8,8,8,8,8]"], "do not divide by its factor"),
        ([*CODEC, "data.train.latents=x"], "no autoencoder with a cache of latents"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("run")
def test_mistakes(refused: Callable[..., str], words: list[str], said: str) -> None:
    if "codec=identity" in words:
        words = [word for word in words if not word.startswith("codec.")]
    assert said in refused("train", *words)
