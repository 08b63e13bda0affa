"""The schema: names and types are looked at in the whole composed configuration, files included."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lmsd.cli.config.compose import groups, load
from lmsd.cli.config.listing import about, listing
from lmsd.cli.config.schema import root
from lmsd.cli.config.signatures import ANYTHING
from lmsd.errors import UserError

EVERYTHING = [
    [f"{group}={choice}"]
    for group in ("net", "discriminator", "conditioner", "schedule", "sampler", "objective", "logger")
    for choice in groups()[group]
    if choice not in ("tensorboard", "wandb")  # their constructors take any name
]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("imags: 3", "unknown option 'imags'; did you mean images"),
        ("optim: {warmup_image: 3}", "unknown option 'optim.warmup_image'; did you mean optim.warmup_images"),
        ("evaluate: {extractor: {pth: x}}", "did you mean evaluate.extractor.path"),
        ("net: {widht: 3}", "unknown option 'net.widht'; did you mean net.width"),
        ("net: {width: [3]}", "net.width=[3] is not a whole number of at least 1"),
        (
            "objective: {game: {pairing: margin}}",
            "is not one of transition, marginal, ode; did you mean marginal?",
        ),
        ("objective: {game: {jumps: {lst: 1}}}", "did you mean objective.game.jumps.last"),
        ("optim: {generator: {lr: fast}}", "optim.generator.lr=fast is not a number"),
        ("callbacks: {progress: {second: 1}}", "did you mean callbacks.progress.seconds"),
        (
            "logger: {csv: {_target_: lightning.pytorch.loggers.CSVLogger, nam: x}}",
            "did you mean logger.csv.name",
        ),
    ],
)
def test_a_typo_in_a_file_is_refused(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{text}\n")
    monkeypatch.setenv("LMSD_CONFIG_DIR", str(tmp_path))
    with pytest.raises(UserError) as error:
        load(["experiment=mine"])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("words", [[], ["experiment=digits"], ["experiment=shapes"], *EVERYTHING], ids=str)
def test_every_option_has_a_kind_and_a_line(words: list[str]) -> None:
    """An option without a line: write "name: what it is" into its constructor's docstring."""
    tree = OmegaConf.to_container(load(words))
    rows = {
        option.key: (option.kind, about(option.argument or (option.node.argument if option.node else None)))
        for option in root(tree).leaves()
    }
    ours = {
        key: row
        for key, row in rows.items()
        if not key.startswith(("logger", "callbacks", "optim.", "objective"))
    }
    told = {key for key, (kind, line) in ours.items() if line or "enum" in kind}
    assert sorted(set(ours) - told) == []
    assert [key for key, (kind, _) in ours.items() if kind == ANYTHING] == []


def test_the_listing_is_the_configuration() -> None:
    config = load(["net=unet_text"])
    lines = listing(["net", "net=unet_text"]).splitlines()
    assert lines[0] == f"net=  one of {', '.join(groups()['net'])}"
    found = {line.split()[0]: line for line in lines[1:]}
    assert list(found) == [f"net.{key}" for key in config.net if not key.startswith("_")]
    assert "a list of whole numbers of at least 1; default [64, 128]" in found["net.widths"]
    assert "channels of each level, multiples of 16" in found["net.widths"]
    assert listing(["seed"]).startswith("seed  a whole number")
    with pytest.raises(UserError, match=r"no options 'nets'; did you mean net\?"):
        listing(["nets"])


def test_named_entries_come_and_go() -> None:
    assert load(["~callbacks.progress"]).callbacks == {}
    stats = "lightning.pytorch.callbacks.DeviceStatsMonitor"
    config = load([f"callbacks.stats={{_target_: {stats}}}", "callbacks.progress.seconds=2"])
    assert config.callbacks.stats._target_ == stats
    assert config.callbacks.progress.seconds == 2
    assert load([f"+callbacks.stats._target_={stats}"]).callbacks.stats._target_ == stats
    with pytest.raises(UserError, match=r"callbacks\.progress\.seconds=often is not a number"):
        load(["callbacks.progress.seconds=often"])
    with pytest.raises(UserError, match=r"unknown option 'callbacks\.bar'"):
        load(["~callbacks.bar"])


def test_a_preconditioned_net_wants_its_schedule() -> None:
    from lmsd.cli.config.limits import check_limits

    with pytest.raises(UserError, match=r"generator\.precondition=edm is for schedule=edm"):
        check_limits(load(["generator.precondition=edm"]))
    check_limits(load(["generator.precondition=edm", "schedule=edm"]))
