"""Every YAML of configs/: it composes, builds at a tiny size and plays two batches; every option is read."""

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from lmsd.cli.build import experiment
from lmsd.cli.config.compose import config_dir, groups, load
from lmsd.cli.config.limits import check_limits
from lmsd.cli.config.schema import root
from lmsd.cli.verbs import demo
from lmsd.engine.hardware import Hardware
from lmsd.engine.trainer import fit
from lmsd.spec import locate, targets

ROOT = config_dir()
SMALL = ["data.image_size=8", "data.channels=1", "images=16", "batch_size=8", "accelerator=cpu"]
SIZES: dict[str, list[str]] = {
    "net=mlp": ["net.width=8", "net.depth=1"],
    "net=unet_text": ["net.widths=[16,16]", "net.heads=2"],
    "net=unet_pooled": ["net.widths=[16,16]", "net.head_dim=8"],
    "net=uvit": ["net.width=16", "net.layers=2", "net.heads=2", "net.context=16"],
    "net=unet_conv": ["net.widths=[16,16]", "net.context=16"],
    "net=transformer_text": ["net.layers=1", "net.heads=2", "net.head_dim=8"],
    "net=dit_label": ["net.layers=1", "net.heads=2", "net.head_dim=8"],
    "discriminator=mlp": ["discriminator.trunk.width=8", "discriminator.trunk.depth=1"],
    "discriminator=conv": ["discriminator.trunk.widths=[8,8]", "discriminator.trunk.features=8"],
    "discriminator=trunk": ["discriminator.width=8"],
    "discriminator=autoencoder": ["discriminator.trunk.width=8", "discriminator.trunk.code=2"],
    "conditioner=text": ["conditioner={dim: 16, heads: 2, vocab: 514, layers: 1}"],
    "conditioner=label": ["conditioner.dim=16"],
    "objective=grpo": ["objective.group=4"],
    "objective=nft": ["objective.group=4"],
}
LEARNS = "objective.refresh={_target_: lmsd.objectives.rewarded.Refresh, turns: 1}"
TAUGHT = ("adv_dmd", "decoupled_dmd", "dmd2", "f_distill")
"""Objectives of a student, which begins as its teacher."""
COMPANIONS = {
    **{f"objective={name}": ["objective.every=1"] for name in TAUGHT},
    "times=levels": ["objective=denoising", "objective.times.levels=[2.0]"],
    "recipe=denoising_cifar10": ["objective=denoising", "schedule=flow"],
    **{f"objective={name}": [LEARNS] for name in ("ddpo", "dpo", "draft", "grpo", "nft")},
    "discriminator=autoencoder": ["objective=article"],
    "objective=ladd": ["discriminator=trunk", "objective.teacher=null"],
    "objective=apt": ["discriminator=trunk"],
    "objective=continual": ["objective.prompts=[a]", "objective.own=4"],
    "objective=preserved": ["objective.prompts=[a]", "objective.own=4"],
    "objective=cafm": ["objective.alone=0", "objective.every=1"],
    "objective=article": ["discriminator=autoencoder"],
    "discriminator=trunk": ["objective.game.pairing=marginal"],
    "net=dit_label": ["conditioner=label", "generator.z_dim=0"],
    "sampler=direct": [
        "objective=article",
        "discriminator=autoencoder",
        "objective.game.predict=previous",
        "generator.prediction=x0",
    ],
    "schedule=edm": ["generator.precondition=edm", "objective.warmup=0"],
    **{f"reward={name}": ["objective=grpo"] for name in ("jpeg", "sharpness")},
    **{f"reward={name}": ["objective=grpo", LEARNS] for name in ("discriminator", "sum")},
    "times=edm": ["objective=denoising", "schedule=edm", "generator.precondition=edm"],
    "times=grid": ["objective=denoising"],
    "times=logit_normal": ["objective=denoising", "schedule=flow"],
    "times=shifted": ["objective=denoising"],
    "times=uniform": ["objective=denoising"],
}
NEEDS = {
    "conditioner=clip": ["conditioner.path=somewhere"],
    "conditioner=t5": ["conditioner.path=somewhere"],
    "codec=taef2": ["codec.path=somewhere"],
    "codec=autoencoder": ["codec.path=somewhere"],
    "codec=trained": ["codec.path=somewhere"],
    "codec=own": [],
    "discriminator=patch": [],
    "generator=none": [],
    "objective=autoencoder": [],
    "objective=edit": [],
    "reward=alignment": ["objective=grpo", "objective.reward.path=somewhere"],
    "generator=pipeline": ["generator.path=somewhere"],
    "generator=run": ["generator.path=somewhere"],
    **{
        f"tuning={name}": ["generator=pipeline", "generator.path=somewhere"]
        for name in ("lora", "dora", "textual_inversion")
    },
    "objective=fd_loss": ["objective.path=somewhere"],
    "reward=aesthetic": [
        "objective=grpo",
        "objective.reward.path=somewhere",
        "objective.reward.head=somewhere",
    ],
    "reward=classifier": ["objective=grpo", "objective.reward.path=somewhere"],
    "reward=function": [
        "objective=grpo",
        "objective.reward.function={_target_: torch.nn.functional.relu, _partial_: true}",
    ],
    "reward=service": ["objective=grpo", "objective.reward.url=http://localhost/"],
    "reward=shapes": ["objective=grpo"],
}
"""Choices that need weights, a service or other data: their names are checked against the constructor."""
PLACED = {
    "optimizer": "optimizer@optim.generator",
    "times": "times@objective.times",
    "reward": "reward@objective.reward",
}
CHOICES = [
    f"{group}={choice}" for group, names in groups().items() if group != "experiment" for choice in names
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Digits, a few of them: 8x8 grey, with captions and labels."""
    from lmsd.data.builders import BuildOptions, Preparation
    from lmsd.data.builders import build as build_data

    folder = tmp_path_factory.mktemp("digits") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMSD_CACHE", str(folder.parent / "cache"))
        build_data("digits", folder, options=BuildOptions(pictures=Preparation(val=0.4, test=0.4)))
        yield folder


def words_for(choice: str) -> list[str]:
    """The overrides that make a choice tiny, with what it needs beside it."""
    group = choice.partition("=")[0]
    own = choice.replace(group, PLACED.get(group, group), 1)
    picked = [own, *COMPANIONS.get(choice, [])]
    chosen = {word.partition("=")[0]: word for word in ["net=mlp", "discriminator=mlp", "conditioner=text"]}
    chosen |= {word.partition("=")[0]: word for word in picked}
    sizes = [size for word in chosen.values() for size in SIZES.get(word, [])]
    return [*chosen.values(), *sizes, *SMALL]


@pytest.mark.parametrize("choice", CHOICES)
def test_a_choice_composes_builds_and_plays(choice: str, shards: Path, tmp_path: Path) -> None:
    if choice in NEEDS:
        group = choice.partition("=")[0]
        config = load([choice.replace(group, PLACED.get(group, group), 1), *NEEDS[choice]])
        check_limits(config)
        node = config.objective.reward if group == "reward" else config[group]
        check_arguments(OmegaConf.to_container(node))
        return
    config = load([*words_for(choice), f"data.shards={shards}", *sources(choice, shards)])
    check_limits(config)
    if choice == "trainer=gpu":
        assert (config.precision, config.micro_batches) == ("auto", 1)
    built = experiment.build(config)
    engine, nets = built.engine, built.cast
    before = [p.detach().clone() for p in nets["generator"].parameters()]
    loggers = []
    if choice not in ("logger=wandb", "logger=none"):  # wandb starts a service
        from lmsd.cli.verbs.train import loggers as make_loggers

        loggers = make_loggers(config, tmp_path)
    fit(engine, built.data, run_dir=tmp_path, hardware=Hardware(accelerator="cpu"), loggers=loggers)
    assert (engine.clock.images, engine.clock.updates) == (16, 2)
    assert any(not torch.equal(a, b) for a, b in zip(before, nets["generator"].parameters(), strict=True))
    experiment.instantiate(config.sampler)


def sources(choice: str, shards: Path) -> list[str]:
    """Where those that begin with weights get them: a denoiser, trained once on two batches."""
    if choice.removeprefix("objective=") not in (*TAUGHT, "continual"):
        return []
    folder = shards.parent / "teacher"
    if not folder.exists():
        config = load([*words_for("objective=denoising"), f"data.shards={shards}"])
        built = experiment.build(config)
        fit(built.engine, built.data, run_dir=folder, hardware=Hardware(accelerator="cpu"))
    return [
        f"init_from={{generator: {folder}, teacher: {folder}}}"
        if choice != "objective=continual"
        else f"init_from={folder}"
    ]


def check_arguments(node: Any) -> None:
    """Every key of a node is an argument of its constructor."""
    if isinstance(node, list):
        for item in node:
            check_arguments(item)
    if not isinstance(node, dict):
        return
    for value in node.values():
        check_arguments(value)
    if "_target_" in node:
        known = inspect.signature(locate(node["_target_"])).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in known.values()):
            unknown = {key for key in node if not key.startswith("_")} - set(known)
            assert not unknown, f"{node['_target_']} takes no {unknown}"


def folder_of_a_pipeline(beside: Path) -> Path:
    """A tiny one, made once."""
    folder = beside.parent / "sd15"
    if not folder.exists():
        sys.path.append(str(Path(__file__).parent / "models"))
        from tiny_pipelines import make

        make("sd15", folder)
    return folder


LATENTS = {
    "cifar10_autoencoder": ["objective.perceptual=0"],
    "cifar10_latent": ["codec=unshuffle", "codec.factor=4"],
    "emoji_latent": ["codec=unshuffle", "codec.factor=8", "codec.scale=1", "codec.shift=0"],
}
"""Experiments of codecs, here without their weights or the classifier behind them."""


@pytest.mark.parametrize("name", groups()["experiment"])
def test_an_experiment_composes_and_builds(name: str, shards: Path) -> None:
    text = (ROOT / "experiment" / f"{name}.yaml").read_text()
    header = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    assert f"lmsd train experiment={name}" in header or (name == "digits" and "demo" in header)
    words = [f"generator.path={folder_of_a_pipeline(shards)}", "data.image_size=32"]
    words = words if name.startswith("pipeline") else []
    words += LATENTS.get(name, [])
    if name == "pipeline_dreambooth":
        words += ["objective.prompts=[a photo of a dog]"]
    config = load([f"experiment={name}", *words])
    assert config.name == name
    check_limits(config)
    assert config.source.startswith("lmsd data ")
    assert "build" not in config.source or f"out={config.data.shards}" in config.source
    config.data.shards, config.source = str(shards), None
    built = experiment.build(config)
    assert set(built.objective.cast) == set(built.cast)


def test_every_option_of_train_is_read(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that no constructor takes: one tiny run, up to its report, reads them all."""
    from lmsd.cli.verbs.train import begin

    read: set[str] = set()
    plain = DictConfig._get_impl

    def noting(self: DictConfig, key: Any, *args: Any, **options: Any) -> Any:
        if sys._getframe(2).f_globals["__name__"].startswith("lmsd."):  # not omegaconf, which copies
            read.add(self._get_full_key(key))
        return plain(self, key, *args, **options)

    monkeypatch.chdir(tmp_path)
    words = [*words_for("reward=sharpness"), f"data.shards={shards}", "evaluate.n=16", "evaluate.grid=2"]
    words += ["evaluate.extractor.images=32", "objective.group=4"]
    words = [word for word in words if not word.startswith("discriminator")]  # nobody plays it here
    tree: Any = OmegaConf.to_container(load(words))
    monkeypatch.setattr(DictConfig, "_get_impl", noting)
    begin(words)
    sections = ("optim.", "evaluate.")
    own = {o.key for o in root(tree).leaves() if "." not in o.key or o.key.startswith(sections)}
    built = {"optim.generator", "optim.discriminator", "optim.clip"}
    unread = {key for key in own - read if key.rpartition(".")[0] not in built}
    # transforms by the discriminator's augmentation, whose parts interpolate it
    assert unread == {
        "resume",
        "extend",
        "transforms",
    }  # the first two are read off the command line, before there is a configuration


def test_every_target_in_every_file_is_allowed() -> None:
    for path in ROOT.rglob("*.yaml"):
        for target, _ in targets(OmegaConf.to_container(OmegaConf.load(path))):
            locate(target)


@pytest.mark.parametrize("arm", demo.ARMS)
def test_both_arms_of_the_demo_compose_and_build(arm: str) -> None:
    config = load(["experiment=digits", *demo.ARMS[arm]])
    check_limits(config)
    objective = experiment.instantiate(config.objective)
    played = objective.shares[-1] - objective.phases[-1].waits.get("generator", 0.0)
    assert (played > 0.2) if arm == "adversary" else (played == 0.0)
