"""Pipelines' folders on the command line: sampled, judged and trained, and refused in one sentence."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lmsd import cli
from lmsd.checkpoints import newest, read, weights
from lmsd.cli.build.pretrained import begun, configured
from lmsd.cli.build.reading import note_words
from lmsd.cli.build.trained import opened
from lmsd.cli.config.settings import SamplingOptions
from lmsd.cli.runs import store
from lmsd.errors import UserError
from lmsd.models.conditioner import NullConditioner
from lmsd.models.pipeline import usual

sys.path.append(str(Path(__file__).parents[2] / "models"))
from tiny_pipelines import make

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = make("sd15", tmp_path_factory.mktemp("pipelines") / "sd15")
    (made / "LICENSE.md").write_text("CreativeML Open RAIL-M")
    return made


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    place = tmp_path_factory.mktemp("home")
    counts = ["train_count=256", "val_count=48", "test_count=48"]
    assert cli.run(["data", "build", "shapes", f"out={place}/shapes", "image_size=16", *counts]) == 0
    assert cli.run(["data", "build", "digits", f"out={place}/digits"]) == 0
    return place


@pytest.fixture
def broken(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "sd15"))


def said(capsys, *words: str) -> str:
    """The one sentence of a refusal."""
    capsys.readouterr()
    assert cli.run(words) == 2
    line = capsys.readouterr().err.strip().splitlines()
    assert len(line) == 1, line
    return line[0]


def test_a_folder_is_sampled_without_training(folder, home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    words = [f"pipeline={folder}", "prompts=[a red circle, a blue star]", "steps=2", "image_size=32"]
    assert cli.run(["sample", *words]) == 0
    out = capsys.readouterr()
    assert "sd15, a StableDiffusionPipeline (LICENSE.md): outputs/" in out.err
    grid = Path(out.out.strip())
    record = json.loads(grid.with_suffix(".json").read_text())
    assert (record["model"], record["license"], record["sampler"]) == ("sd15", "LICENSE.md", "PLMS")
    assert (record["steps"], record["guidance"], record["nfe"]) == (2, 7.5, 6.0)
    known = json.loads((grid.parents[1] / "env.json").read_text())["pretrained"]
    assert known == {"model": "sd15", "pipeline": "StableDiffusionPipeline", "license": "LICENSE.md"}
    again = home / "again.png"
    assert cli.run(["sample", f"again={grid.with_suffix('.json')}", f"out={again}"]) == 0
    assert again.read_bytes() == grid.read_bytes()


def test_a_folder_is_judged_without_training(folder, home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    words = ["data.shards=digits", "data.image_size=16", "image_size=32", "batch_size=7"]
    others = ["n=160", "seeds=[0]", "steps=1", "guidance=1", "evaluate.extractor.images=64", "families=none"]
    assert cli.run(["evaluate", f"pipeline={folder}", *words, *others]) == 0
    out = capsys.readouterr().out
    assert "fd[lmsd-cnn@" in out
    assert "floor" in out
    folder_of_scores = Path(out.rpartition("Report: ")[2].strip()).parent / "eval" / "test"
    (record,) = (file for file in folder_of_scores.glob("*.json") if file.stem != "metrics")
    setup = json.loads(record.read_text())
    assert "32 to 16 pixels (fit-bicubic-1)" in str(setup)
    assert "LICENSE.md" in str(setup)


@pytest.mark.parametrize(
    ("verb", "words", "why"),
    [
        ("sample", ["prompts=[a cat]", "sampler=direct"], "which Direct does not expect"),
        ("sample", ["prompts=[a cat]", "n=2"], "leave one of the two out"),
        ("sample", [], "needs prompts="),
        ("sample", ["prompts=gone.txt"], "there is no such file"),
        ("evaluate", ["data.shards=alone", "data.image_size=16"], "and the shards of split=test hold none"),
    ],
)
def test_a_refusal_leaves_no_run_behind(verb, words, why, folder, home, monkeypatch, capsys):
    """Nor an outputs/latest that names it; and no extractor is trained for images without captions."""
    monkeypatch.chdir(home)
    if not Path("alone").is_dir():
        Path("pictures").mkdir()
        for number in range(60):
            pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(f"pictures/{number}.png")
        assert cli.run(["data", "build", "folder", "path=pictures", "out=alone", "image_size=16"]) == 0
    runs = sorted(path.name for path in Path("outputs").glob("*"))
    latest = Path("outputs/latest").readlink() if Path("outputs/latest").is_symlink() else None
    capsys.readouterr()
    assert cli.run([verb, f"pipeline={folder}", *words]) == 2
    said = capsys.readouterr().err
    assert why in said
    assert "lmsd-ssl" not in said
    assert sorted(path.name for path in Path("outputs").glob("*")) == runs
    assert (Path("outputs/latest").readlink() if latest else None) == latest


def test_captions_that_a_folder_cuts_are_told_in_its_own_words(capsys):
    class Reader(NullConditioner):
        length = 77

        def cut(self, captions):
            return 3

    note_words(Reader(), ["a"] * 9, "the folder's context, ", foreign=False)
    assert capsys.readouterr().out == "note: 3 of 9 captions are cut at the folder's context, 77 tokens\n"


def test_images_do_not_depend_on_how_many_are_made_at_once(folder):
    from lmsd.cli.build.pretrained import Fitted
    from lmsd.models.pipeline import from_pipeline
    from lmsd.rng import Rng
    from lmsd.sampling import Generation, Settings
    from lmsd.spec import build
    from lmsd.types import Batch

    generator = from_pipeline(folder, image_size=32)
    made = Generation(generator, build(generator.read.sampler), Settings(1))
    batch = Batch(torch.zeros(5, 3, 16, 16), torch.arange(5), ["a red circle", "a blue star"] * 2 + ["a"])
    images = [Fitted(made, size=16, at_once=count)(batch, Rng(0, batch.position)) for count in (2, 5)]
    assert images[0].shape == (5, 3, 16, 16)
    torch.testing.assert_close(images[0], images[1], rtol=0, atol=2 / 255)


@pytest.mark.parametrize(
    "word", ["net=mlp", "net.width=8", "schedule=flow", "codec=unshuffle", "conditioner=none"]
)
def test_groups_that_a_pipeline_does_not_read_are_refused(folder, word, capsys):
    line = said(capsys, "train", "generator=pipeline", f"generator.path={folder}", word, "data.shards=x")
    part = word.partition("=")[0].partition(".")[0]
    assert f"{word}: generator=pipeline reads its {part} from the folder: leave it out" in line


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("SanaSprintPipeline", "TrigFlow"),
        ("Flux2Pipeline", "a large language model"),
        ("QwenImagePipeline", "a large language model"),
        ("ZImagePipeline", "a large language model"),
        ("KandinskyPipeline", "those that are: StableDiffusionPipeline"),
    ],
)
def test_families_that_are_not_read_are_named(broken, kind, why, capsys):
    index = json.loads((broken / "model_index.json").read_text())
    (broken / "model_index.json").write_text(json.dumps(index | {"_class_name": kind}))
    line = said(capsys, "sample", f"pipeline={broken}", "prompts=a")
    assert f"a {kind} is not read: " in line
    assert why in line


def without(name: str):
    def do(folder: Path) -> None:
        shutil.rmtree(folder / name)

    return do


def pickled(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()


def indexed(name: str, value: object):
    def do(folder: Path) -> None:
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps(index | {name: value}))

    return do


def halved(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def sharded(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    name = "diffusion_pytorch_model-00001-of-00002.safetensors"
    file.rename(file.with_name(name))
    index = {"metadata": {}, "weight_map": {"a": name, "b": name.replace("00001", "00002", 1)}}
    (file.parent / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def thinned(folder: Path) -> None:
    file = folder / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    weights.pop(next(name for name in sorted(weights) if "layers.1" in name))
    save_file(weights, file, metadata={"format": "pt"})


def overflown(folder: Path) -> None:
    """A half-precision autoencoder whose weights are no numbers any more."""
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = {name: value * 1e6 if value.ndim > 1 else value for name, value in load_file(file).items()}
    save_file({name: value.half() for name, value in weights.items()}, file, metadata={"format": "pt"})


def told(name: str, **values: object):
    def do(folder: Path) -> None:
        file = folder / name / ("scheduler_config.json" if name == "scheduler" else "config.json")
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return do


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (without("vae"), "the folder vae/ is missing: the download is not complete"),
        (without("tokenizer"), "the folder tokenizer/ is missing"),
        (
            indexed("text_encoder", [None, None]),
            "names no text_encoder, and a StableDiff",
        ),
        (
            indexed("unet", ["diffusers", "UNet2DModel"]),
            "its unet is a UNet2DModel, and only UNet2DCond",
        ),
        (pickled, "unet/ holds pickled weights only (diffusion_pytorch_model.bin)"),
        (halved, "unet/ cannot be loaded: "),
        (
            sharded,
            "unet/ lacks diffusion_pytorch_model-00002-of-00002.safetensors: the download",
        ),
        (thinned, "the weights in text_encoder/ do not fit its config.json, see "),
        (overflown, "vae/ holds numbers that are not finite, in "),
        (
            told("scheduler", _class_name="ScoreSdeVeScheduler"),
            "its scheduler, ScoreSdeVeScheduler, is not read",
        ),
        (told("unet", in_channels=9), "its U-Net takes 9 channels and gives 4, and that is not read"),
    ],
    ids=lambda value: getattr(value, "__qualname__", "").partition(".")[0],
)
def test_a_wrong_folder_is_refused_in_one_sentence(broken, damage, sentence, home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    damage(broken)
    capsys.readouterr()
    assert cli.run(["sample", f"pipeline={broken}", "prompts=a", "steps=1", "image_size=32"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lmsd: ")]
    assert len(errors) == 1
    assert f"pipeline {broken}: " in errors[0]
    assert sentence in errors[0]


def test_an_autoencoder_that_overflows_in_half_precision_is_named(broken, home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    file = broken / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    grown = {name: value * 40 if name.startswith("decoder") else value for name, value in weights.items()}
    save_file(grown, file, metadata={"format": "pt"})
    told("vae", force_upcast=False)(broken)
    words = ["sample", f"pipeline={broken}", "prompts=a", "steps=1", "image_size=32"]
    assert cli.run([*words, "generator.precision=float16"]) == 2
    assert (
        "its autoencoder overflows in float16: take precision=bfloat16, or float32" in capsys.readouterr().err
    )
    told("vae", force_upcast=True)(broken)  # then it is float32, as diffusers has it
    assert cli.run([*words, "generator.precision=float16"]) == 0


def test_full_fine_tuning_goes_on_bitwise(folder, home, monkeypatch):
    """Six updates of the whole net; from the checkpoint in the middle the same weights come again."""
    monkeypatch.chdir(home)
    words = ["experiment=pipeline_full", f"generator.path={folder}", "data.shards=shapes", "run_dir=whole"]
    words += ["data.image_size=32", "batch_size=4", "images=24", "checkpoint_every=12", "accelerator=cpu"]
    words += ["optim.warmup_images=4", "optim.ema=[8]", "optim.generator.lr=1e-3"]
    assert cli.run(["train", *words]) == 0
    shutil.copytree("whole", "half")
    for file in Path("half/checkpoints").glob("*24*"):
        file.unlink()
    status = json.loads(Path("half/status.json").read_text())
    Path("half/status.json").write_text(json.dumps(status | {"state": "interrupted", "images": 12}))
    assert cli.run(["train", "resume=half"]) == 0
    whole, half = (read(newest(Path(name, "checkpoints"))) for name in ("whole", "half"))
    for average in (None, "8"):
        ours, other = weights(whole, "generator", average), weights(half, "generator", average)
        tensors = [name for name in ours if not name.endswith("_extra_state")]
        assert ours.keys() == other.keys()
        assert all(torch.equal(ours[name], other[name]) for name in tensors)
    raw, base = weights(whole, "generator"), load_file(folder / "unet" / WEIGHTS)
    kept = {name for name in raw if not name.endswith("_extra_state")}
    assert kept == {f"net.model.{name}" for name in base}
    moved = [name for name, value in base.items() if not torch.equal(raw[f"net.model.{name}"], value)]
    assert len(moved) > 0.9 * len(base)


def test_pipeline_stands_in_the_place_of_run(folder, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    line = said(capsys, "sample", f"pipeline={folder}", "run=last", "prompts=a")
    assert "pipeline=FOLDER stands in the place of run=" in line
    assert "unknown option 'net' of lmsd sample" in said(
        capsys, "sample", f"pipeline={folder}", "net=a", "prompts=a"
    )
    assert not Path("outputs").exists()  # before a run was made
    assert "there is no such folder" in said(capsys, "sample", "pipeline=nowhere", "prompts=a")


@pytest.mark.parametrize(
    "word", ["sampler.tau=0.5", "evaluate.steps=3", "evaluate.guidance=1", "generator.path=elsewhere"]
)
def test_what_a_folder_would_overrule_is_refused(folder, word, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    line = said(capsys, "sample", f"pipeline={folder}", "prompts=a", word)
    assert f"{word} does nothing beside pipeline=FOLDER" in line
    assert not Path("outputs").exists()


@pytest.mark.parametrize("options", [{"checkpoint": "step_000000001.ckpt"}, {"ema": "64"}])
def test_an_untrained_folder_has_neither_checkpoints_nor_averages(folder, options, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run = Path(begun(str(folder), ["image_size=32"], ["image_size=32", f"pipeline={folder}"]))
    with pytest.raises(UserError, match="nothing has trained, without checkpoints and averages"):
        opened(run, SamplingOptions(run=str(run), **options))


def test_a_training_run_without_a_checkpoint_is_no_untrained_folder(folder, monkeypatch, tmp_path):
    """Else `lmsd sample run=last` would show the folder's own images as those of the training."""
    monkeypatch.chdir(tmp_path)
    config = configured(folder, usual(folder), ["image_size=32"])
    run = store.create(config, ["generator=pipeline", f"generator.path={folder}"])
    with pytest.raises(UserError, match="has no checkpoint yet"):
        opened(run, SamplingOptions(run=str(run)))
