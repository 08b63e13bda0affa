"""Runs that read their latents and text codes from a cache: `lmsd data encode`, then the same words."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_home import TINY, Home, inside, on_two_ranks, spoken

from lmsd import checkpoints
from lmsd.models.autoencoder import TAEF2, _decoder, _encoder

WORDS = [*TINY, "data.shards=data/shapes", "codec=taef2", "codec.path=cached/taef2"]
WORDS += ["codec.statistics=cached/s.json", "data.train.flip=true", "evaluate.n=0"]
CACHE = "data.train.latents=cached/latents"


@pytest.fixture(scope="module")
def run(made: Home) -> str:
    """A finished run that has read its latents from the cache."""
    with inside(made.folder):
        torch.manual_seed(0)
        Path("cached/taef2").mkdir(parents=True)
        for half, net in (("encoder", _encoder(64, 32)), ("decoder", _decoder(64, 32))):
            torch.save(net.state_dict(), f"cached/taef2/taef2_{half}.pth")
        spoken(["data", "statistics", *WORDS, "images=200"])
        said = spoken(["data", "encode", *WORDS, CACHE])
        assert "0 written here" not in said
        assert "0 written here" in spoken(["data", "encode", *WORDS, CACHE])
        spoken(["train", *WORDS, CACHE, "run_dir=cached/run"])
    return "cached/run"


@pytest.fixture(autouse=True)
def _home(home: Home) -> None:
    """Every test works in the home."""


def lines(folder: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_first_loss_is_that_of_the_online_run_with_rounded_latents(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit; and without the rounding it is another number."""
    exact = TAEF2.latents
    monkeypatch.setattr(TAEF2, "latents", lambda codec, x: exact(codec, x).half().float())
    spoken(["train", *WORDS, "run_dir=cached/rounded"])
    monkeypatch.setattr(TAEF2, "latents", exact)
    spoken(["train", *WORDS, "run_dir=cached/exact"])
    cached, rounded, plain = (lines(folder)[0] for folder in (run, "cached/rounded", "cached/exact"))
    losses = [name for name in cached if name.endswith("/loss")]
    assert losses
    assert {name: cached[name] for name in losses} == {name: rounded[name] for name in losses}
    assert {name: cached[name] for name in losses} != {name: plain[name] for name in losses}


ENCODE = {
    "data.image_size": "data.image_size=32",
    "data.train.flip": "data.train.flip=false",
    "codec.path": "codec.path=cached/other",
    "data.train.latents": "data.train.latents=cached/elsewhere",
}
"""The words of a run that `lmsd data encode` reads; of the others none makes other files."""


@pytest.mark.slow
@pytest.mark.usefixtures("run")
def test_every_word_that_encode_reads_makes_other_files() -> None:
    Path("cached/other").mkdir()
    for half in ("encoder", "decoder"):
        tensors = torch.load(f"cached/taef2/taef2_{half}.pth", weights_only=True)
        torch.save({name: 1.1 * value for name, value in tensors.items()}, f"cached/other/taef2_{half}.pth")
    own = {word.partition("=")[0]: word for word in [*WORDS, "data.train.latents=cached/words"]}
    spoken(["data", "encode", *own.values()])
    for name, changed in ENCODE.items():
        assert "0 written here" not in spoken(["data", "encode", *{**own, name: changed}.values()]), name
    for other in ("seed=1", "batch_size=16", "codec.statistics=cached/none.json"):
        words = {**own, other.partition("=")[0]: other}.values()
        assert "0 written here" in spoken(["data", "encode", *words]), other


@pytest.mark.usefixtures("run")
def test_every_word_that_statistics_reads_changes_them(refused: Callable[..., str]) -> None:
    kept = [word for word in WORDS if not word.startswith(("codec.statistics", "data.image_size"))]

    def measured(name: str, count: str, size: str = "data.image_size=16") -> dict[str, object]:
        spoken(["data", "statistics", *kept, f"codec.statistics=cached/{name}.json", count, size])
        return json.loads(Path(f"cached/{name}.json").read_text())  # type: ignore[no-any-return]

    first = measured("base", "images=20")  # the run's own words have images=, too: the last one counts
    assert measured("again", "images=20") == first
    assert measured("more", "images=30") != first
    assert measured("larger", "images=20", "data.image_size=32") != first
    assert "images=none is not a whole number" in refused("data", "statistics", *WORDS, "images=none")


def test_a_killed_run_resumes_to_the_same_bits(run: str) -> None:
    again = Path(f"{run}-again")
    shutil.copytree(run, again)
    for suffix in (".json", ".ckpt"):
        (again / "checkpoints" / f"step_000000192{suffix}").unlink()
    status = json.loads((again / "status.json").read_text())
    (again / "status.json").write_text(json.dumps({**status, "state": "killed"}))
    spoken(["train", f"resume={again}"])
    ours, theirs = (checkpoints.read(folder)["state_dict"] for folder in (again, Path(run)))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(v, theirs[k]) for k, v in ours.items() if torch.is_tensor(v))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["data.image_size=32"],
            "transform was fit-bicubic-1-decode-2-16-3 and is fit-bicubic-1-decode-2-32",
        ),
        (["codec=identity"], "no autoencoder with a cache of latents"),
        (["data.train.latents=nowhere"], "lacks the latents of"),
        (["data.train.color=0.1"], "data.train.color changes images"),
    ],
)
@pytest.mark.usefixtures("run")
def test_a_cache_that_does_not_fit_is_refused(
    words: list[str], said: str, refused: Callable[..., str]
) -> None:
    own = [
        word for word in [*WORDS, CACHE] if word.partition("=")[0] not in {w.partition("=")[0] for w in words}
    ]
    if words[0].startswith("codec=identity"):
        own, words = [word for word in own if not word.startswith("codec")], ["codec=identity"]
    assert said in refused("train", *own, *words)


@pytest.mark.slow
def test_two_ranks_encode_and_train_as_one(run: str) -> None:
    on_two_ranks("data", "encode", *WORDS, "data.train.latents=cached/two")
    one, two = ({p.name: p.read_bytes() for p in Path("cached", n).iterdir()} for n in ("latents", "two"))
    assert one == two
    on_two_ranks("train", *WORDS, CACHE, "devices=2", "run_dir=cached/run-two")
    ours, theirs = (checkpoints.read(Path(path))["state_dict"] for path in ("cached/run-two", run))
    pairs = [(v, theirs[k]) for k, v in ours.items() if torch.is_tensor(v) and v.numel()]
    assert max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-3)) for a, b in pairs) < 1e-3
