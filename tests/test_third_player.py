"""A third player from outside the repository: trained, killed, resumed, averaged. docs/extending.md has it.

That two ranks are one process with it, to 1e-10, is in tests/engine/test_ranks.py, under "matching".
"""

import os
import signal
from pathlib import Path

import pytest
import torch

from lmsd import checkpoints, cli
from lmsd.engine.module import Engine
from test_docs import run, write_examples

SMALL = [
    "experiment=digits", "images=192", "batch_size=16", "log_every=64", "checkpoint_every=64", "evaluate.n=0",
    "net.width=16", "net.depth=1", "accelerator=cpu", "checkpoint_async=false", "optim.ema=[64]",
]  # fmt: skip


def matching(folder: Path, *more: str) -> list[str]:
    sources = "init_from={generator: outputs/teacher@ema, teacher: outputs/teacher}"
    return ["train", *SMALL, "objective=matching", sources, f"run_dir={folder}", "steps=1", *more]


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with the example, shards and a teacher."""
    monkeypatch.chdir(tmp_path)
    write_examples(tmp_path)
    monkeypatch.setenv("LMSD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LMSD_CONFIG_DIR", str(tmp_path / "my_configs"))
    monkeypatch.setenv("LMSD_ALLOW", "my_lmsd")
    monkeypatch.syspath_prepend(str(tmp_path))
    run(["data", "build", "digits", "out=data/digits"])
    run(["train", *SMALL, "objective=denoising", "run_dir=outputs/teacher"])
    return tmp_path


def killed(words: list[str], *, at: int) -> int:
    """Run a verb in a process of its own that is killed after `at` images; how it ended."""
    child = os.fork()
    if not child:
        play = Engine.training_step

        def step(self: Engine, batch: object, index: int) -> None:
            if self.clock.images >= at:
                os.kill(os.getpid(), signal.SIGKILL)
            play(self, batch, index)  # type: ignore[arg-type]

        Engine.training_step = step  # type: ignore[method-assign]
        os._exit(cli.run(words))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_it_trains_is_killed_and_resumes_bitwise(outside: Path) -> None:
    run(matching(outside / "outputs" / "whole"))
    assert killed(matching(outside / "outputs" / "broken"), at=112) == -signal.SIGKILL
    assert checkpoints.newest(outside / "outputs" / "broken" / "checkpoints").stem == "step_000000064"
    run(["train", "resume=outputs/broken"])
    whole, broken = (checkpoints.read(outside / "outputs" / name) for name in ("whole", "broken"))
    ours, theirs = (dict(checkpoints.tensors(content)) for content in (whole, broken))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    played = whole[checkpoints.KEY]["clock"]
    assert played["played"] == {"fake": 24, "generator": 12}
    assert (played["images"], played["updates"]) == (192, 12)  # the generator leads


def test_everybody_is_what_the_cast_says(outside: Path) -> None:
    run(matching(outside / "outputs" / "whole", "optim.fake.lr=3e-4"))
    content = checkpoints.read(outside / "outputs" / "whole")
    assert list(content["optimizers"]) == ["fake", "generator"]
    assert content["optimizers"]["fake"]["param_groups"][0]["initial_lr"] == 3e-4
    assert checkpoints.roles(content) == ("generator", "fake", "teacher")
    assert checkpoints.averages(content, "generator") == {"64": "ema.generator.64."}
    assert checkpoints.averages(content, "fake") == {"1000": "ema.fake.1000."}
    taught = checkpoints.weights(checkpoints.read(outside / "outputs" / "teacher"), "generator")
    still = checkpoints.weights(content, "teacher")
    tensors = [name for name, value in taught.items() if isinstance(value, torch.Tensor)]
    assert all(torch.equal(taught[name], still[name]) for name in tensors)
    for role in ("generator", "fake"):
        moved = checkpoints.weights(content, role)
        assert any(not torch.equal(taught[name], moved[name]) for name in tensors)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["objective=matching"], "give weights: init_from={teacher: RUN@ema}"),
        (["objective=matching", "init_from={critic: RUN}"], "no player 'critic', only fake, generator"),
        (["objective=matching", "optim.fakes.lr=1"], "did you mean optim.fake.lr"),
    ],
)
def test_what_does_not_fit_is_refused(
    outside: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert cli.run(["train", *SMALL, *words]) == 2
    assert said in capsys.readouterr().err
