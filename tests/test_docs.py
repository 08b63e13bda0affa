"""README and docs: every command in them is one that is accepted; the worked examples run as they stand."""

import contextlib
import io
import json
import re
import shlex
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lmsd import cli
from lmsd.cli.build.words import apart
from lmsd.cli.config import options
from lmsd.cli.config.compose import groups, load
from lmsd.cli.config.limits import check_limits
from lmsd.cli.config.listing import listing, schema
from lmsd.cli.config.schema import root
from lmsd.cli.sweeps import space
from lmsd.cli.verbs import VERBS, continual
from lmsd.cli.verbs.edit import EditOptions
from lmsd.cli.verbs.evaluate import EvaluateOptions
from lmsd.cli.verbs.export import split
from lmsd.cli.verbs.merge import MergeOptions
from lmsd.cli.verbs.sample import Again, SampleOptions
from lmsd.cli.verbs.sweep import chosen_by
from lmsd.features.cnn import FEATURES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)


def commands(page: Path) -> list[list[str]]:
    """The lmsd commands of a page's blocks, each as words after "lmsd"."""
    found = []
    for language, text in BLOCK.findall(page.read_text()):
        for line in text.splitlines() if not language else ():
            words = shlex.split(line, comments=True)
            if "lmsd.cli" in words:
                words = ["lmsd", *words[words.index("lmsd.cli") + 1 :]]
            if words and words[0] == "lmsd":
                found.append(words[1 : words.index(">") if ">" in words else None])
    return found


COMMANDS = [(page.name, words) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[f"{p}: {shlex.join(w)}" for p, w in COMMANDS])
def test_a_command_is_accepted(
    page: str, words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    verb, rest = words[0], words[1:]
    assert verb in VERBS
    if page == "extending.md":
        write_examples(tmp_path)
        monkeypatch.setenv("LMSD_CONFIG_DIR", str(tmp_path / "my_configs"))
        monkeypatch.setenv("LMSD_ALLOW", "my_lmsd")
        monkeypatch.syspath_prepend(str(tmp_path))
    if verb == "train" and "--options" in rest:
        assert listing([word for word in rest if word != "--options"])
    elif verb == "train" and "--schema" in rest:
        assert json.loads(schema())["$defs"]
    elif verb in ("train", "verify-resume") and "--help" not in rest:
        chosen = [word for word in rest if not word.startswith(("resume=", "--cfg")) and word != "job"]
        if any(word.startswith(continual.WORDS) for word in chosen):
            tasks, _, chosen = continual.split(chosen)
            continual.check(tasks, chosen, load(chosen))
        check_limits(load(chosen))
    elif verb == "sweep":
        plain = [word for word in rest if word != "--dry-run"]
        tried = space.read([word for word in plain if not word.startswith("sweep.")])
        assert load(list(tried.fixed)).evaluate.n >= 2 * FEATURES  # with fewer no trial has an FD
        chosen_by([word for word in plain if word.startswith("sweep.")])
    elif verb in ("sample", "edit", "evaluate", "merge"):
        kinds = {"sample": SampleOptions, "edit": EditOptions, "evaluate": EvaluateOptions}
        kinds["merge"] = MergeOptions  # type: ignore[assignment]
        if any(word.startswith("pipeline=") for word in rest):
            given, left = apart(rest)
            load(["generator=pipeline", *(word for word in given if "." in word.partition("=")[0])])
            rest = ["run=last", *left]
        again = any(word.startswith("again=") for word in rest)
        options.read(Again if again else kinds[verb], rest, verb=verb)
    elif verb == "update":
        check_limits(load([word for word in rest if not word.startswith("run=")]))
    elif verb == "compress":
        from lmsd.cli.verbs.compress import CompressOptions

        assert options.read(CompressOptions, rest, verb=verb)
    elif verb == "launch":
        from lmsd.cli.verbs.launch import main

        assert main(rest) == 0
    elif verb in ("promote", "ask", "watch"):
        from lmsd.cli.verbs import ask, promote, watch

        assert rest == ["back"] or {"promote": promote, "ask": ask, "watch": watch}[verb].read(rest)
    elif verb == "export":
        split(rest)
    elif verb == "serve":
        from lmsd.cli.verbs.serve import split as split_serve

        split_serve(rest)
    elif verb == "data":
        from lmsd.cli.verbs.data import FeaturesOptions, ShowOptions
        from lmsd.cli.verbs.parts import MergeOptions as JoinOptions
        from lmsd.cli.verbs.parts import parted
        from lmsd.data.builders import SOURCES, BuildOptions
        from lmsd.data.votes import VotesOptions

        kinds_ = {"build": BuildOptions, "features": FeaturesOptions, "show": ShowOptions}
        kind = {**kinds_, "votes": VotesOptions, "merge": JoinOptions}.get(rest[0])
        if rest[0] == "synthesize":
            from lmsd.cli.verbs.synthesize import SynthesizeOptions

            assert options.read(SynthesizeOptions, rest[1:], verb="data synthesize")
        assert rest[0] != "build" or rest[1] in {*SOURCES, "photos"}
        rest = parted(rest)[1] if rest[0] == "build" else rest
        if rest[0] == "merge":
            rest = ["merge", "part", *(word for word in rest if "=" in word)]
        if kind is not None:
            options.read(
                kind, [w for w in rest[2:] if rest[0] == "show" or not w.startswith("out=")], verb="data"
            )
    else:
        assert verb in ("doctor", "runs", "report", "train", "demo")


def test_verbs_that_are_told_of_exist_and_options_in_the_text_too() -> None:
    text = " ".join(page.read_text() for page in PAGES)
    names = {
        option.key
        for word in [*(f"objective={choice}" for choice in groups()["objective"]), "generator=pipeline"]
        for option in root(OmegaConf.to_container(load([word]))).leaves()
    }
    for option in re.findall(r"`((?:data|optim|objective|evaluate|callbacks|generator)\.[a-z_.]+)[=`]", text):
        assert option in names or any(name.startswith(f"{option}.") for name in names), option


def write_examples(folder: Path) -> None:
    """The files of docs/extending.md, each named in the line before its first."""
    for language, text in BLOCK.findall((ROOT / "docs" / "extending.md").read_text()):
        if language:
            name, _, content = text.partition("\n")
            path = folder / name.removeprefix("# ")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LMSD_CACHE", str(tmp_path / "cache"))
    return tmp_path


def run(words: list[str]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert cli.run(words) == 0, words
    return out.getvalue()


def test_the_worked_examples_run(away: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    from PIL import Image

    write_examples(away)
    monkeypatch.setenv("LMSD_CONFIG_DIR", str(away / "my_configs"))
    monkeypatch.setenv("LMSD_ALLOW", "my_lmsd")
    monkeypatch.syspath_prepend(str(away))
    Path("my_images").mkdir()
    for number in range(40):
        Image.effect_noise((20, 18), 60 + number).save(f"my_images/{number:02d}.png")
        Path(f"my_images/{number:02d}.txt").write_text(f"noise number {number % 5}")
    run(["data", "build", "digits", "out=data/digits"])
    small = ["accelerator=cpu", "images=32", "batch_size=16", "log_every=16"]
    for words in commands(ROOT / "docs" / "extending.md"):
        said = run([*words, *(small if words[0] == "train" else [])])
        if words[0] == "train":
            assert "Report: " in said
    assert "objective.weight" in listing(["objective=twins", "objective"])
    for word, told in (
        ("objective.wieght=0.2", "did you mean objective.weight"),
        ("objective.weight=much", "objective.weight=much is not a number"),
    ):
        capsys.readouterr()
        assert cli.run(["train", "objective=twins", word]) == 2
        assert told in capsys.readouterr().err


TINY = [
    "images=64",
    "batch_size=32",
    "log_every=32",
    "checkpoint_every=32",
    "evaluate.every=64",
    "evaluate.at_start=false",
    "evaluate.extractor.images=64",
    "evaluate.grid=2",
    "optim.ema=[32]",
    "accelerator=cpu",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        "quickstart.md",
        "configs.md",
        "data.md",
        "adversarial.md",
        "evaluation.md",
        "few_steps.md",
    ],
)
def test_the_commands_of_a_page_run_in_order(page: str, away: Path) -> None:
    """As they stand, but for sizes."""
    from PIL import Image

    run(["data", "build", "digits", "out=data/digits"])
    small = ["image_size=16", "train_count=64", "val_count=32", "test_count=32", "near_duplicates=keep"]
    run(["data", "build", "shapes", "out=data/shapes", *small])
    Path("photos").mkdir()
    for number in range(8):
        Image.effect_noise((260, 256), 60 + number).save(f"photos/{number}.png")
        Path(f"photos/{number}.txt").write_text(f"noise number {number}")
    for name in "ABC" if page == "evaluation.md" else "":  # guidance needs captions that were dropped
        drop = [
            "objective.game.caption_dropout=0.1",
            "evaluate.n=24",
            f"run_dir=outputs/{name}",
            f"name={name}",
        ]
        run(["train", "experiment=digits", *TINY, *drop, f"seed={ord(name)}"])
    for words in commands(ROOT / "docs" / page):
        if {"devices=2", "codec.path=WEIGHTS"} & set(words):  # tests/cli: test_main.py, test_codec_runs.py
            continue
        if "mask=mask.png" in words:
            with Image.open("three.png") as image:
                Image.new("L", image.size, 255).save("mask.png")
        if words[:2] == ["data", "build"]:
            words = [*words, "overwrite=true"]
        if words[0] == "train" and not {"--options", "--help", "--cfg"} & set(words):
            words = [*words, *TINY, *([] if any("debug=" in w for w in words) else ["evaluate.n=24"])]
        if words[0] == "evaluate":
            words = [word for word in words if not word.startswith("n=")] + ["n=24"]
        run(words)
