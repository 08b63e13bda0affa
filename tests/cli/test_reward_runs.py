"""A run whose judge and generator come from another run."""

from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from lmsd.cli.build import experiment
from lmsd.cli.config.compose import load
from lmsd.data.builders import BuildOptions, Preparation
from lmsd.data.builders import build as build_data
from lmsd.data.shardset import ShardSet
from lmsd.engine.hardware import Hardware
from lmsd.engine.trainer import fit
from lmsd.errors import UserError

SMALL = [
    "data.image_size=8", "data.channels=1", "images=16", "batch_size=8", "net.width=8", "net.depth=1",
    "discriminator.trunk.width=8", "discriminator.trunk.depth=1", "optim.ema=[]",
    "conditioner={dim: 16, heads: 2, vocab: 514, layers: 1}",
]  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMSD_CACHE", str(folder.parent / "cache"))
        build_data("digits", folder, options=BuildOptions(pictures=Preparation(val=0.4, test=0.4)))
    return folder


def opened(words: list[str], shards: Path) -> DictConfig:
    return load([*words, *SMALL, f"data.shards={shards}"])


def test_generator_and_judge_come_from_one_run(shards: Path, tmp_path: Path) -> None:
    config = opened(["recipe=lmsd_digits", "objective.warmup=0", "objective.head_start=0"], shards)
    built = experiment.build(config)
    first = built.cast
    fit(built.engine, built.data, run_dir=tmp_path / "first", hardware=Hardware(accelerator="cpu"))

    sources = f"init_from=[{tmp_path / 'first'},{tmp_path / 'first'}:discriminator]"
    config = opened(["objective=grpo", "objective.group=4", sources], shards)
    built = experiment.build(config)
    nets, objective = built.cast, built.objective
    assert sorted(nets) == ["discriminator", "generator", "reference"]
    for name, source in (("generator", "generator"), ("reference", "generator"), ("discriminator",) * 2):
        for ours, theirs in zip(nets[name].parameters(), first[source].parameters(), strict=True):
            assert torch.equal(ours, theirs)
            assert ours.requires_grad == (name == "generator")
    assert objective.held_out is not None
    assert len(objective.held_out) == 256
    assert len(set(objective.held_out.position.tolist())) == 256
    judge = [p.clone() for p in nets["discriminator"].parameters()]
    fit(built.engine, built.data, run_dir=tmp_path / "second", hardware=Hardware(accelerator="cpu"))
    assert objective.reward.temperature != 1.0  # calibrated on val
    assert all(torch.equal(a, b) for a, b in zip(judge, nets["discriminator"].parameters(), strict=True))
    moved = zip(nets["generator"].net.parameters(), nets["reference"].net.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in moved)
    same = zip(
        nets["generator"].conditioner.parameters(), nets["reference"].conditioner.parameters(), strict=True
    )
    assert all(torch.equal(a, b) for a, b in same)  # rewards do not train the text


def test_a_judge_that_learned_nothing_is_refused(shards: Path) -> None:
    config = opened(["objective=grpo", "objective.group=4"], shards)
    with pytest.raises(UserError, match=r"init_from=\[RUN@ema,RUN:discriminator\], let it learn"):
        experiment.build(config)


def test_a_judge_without_held_out_images_is_told_of(
    shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that learns as it goes may begin with nothing; without val it has no temperature and no cap."""
    refresh = "objective.refresh={_target_: lmsd.objectives.rewarded.Refresh}"
    config = opened(["objective=grpo", "objective.group=4", refresh], shards)
    assert experiment.build(config).objective.held_out is not None
    assert "no val shards" not in capsys.readouterr().out
    monkeypatch.setattr(ShardSet, "has", lambda self, split: split != "val")
    assert experiment.build(config).objective.held_out is None
    assert "note: no val shards to calibrate the discriminator on" in capsys.readouterr().out


def test_a_player_that_is_not_there_is_refused(shards: Path, tmp_path: Path) -> None:
    config = opened(["objective=denoising", f"init_from=[{tmp_path}:discriminator]"], shards)
    with pytest.raises(UserError, match="no player 'discriminator'"):
        experiment.build(config)
