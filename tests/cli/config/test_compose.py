"""Overrides: what is unknown, of the wrong type or malformed gets one sentence with the way out."""

import pytest

from lmsd.cli.config.compose import check_choice, config_dir, flatten, groups, load, parse
from lmsd.errors import UserError


def test_values_and_choices_reach_the_configuration() -> None:
    config = load(["net=unet_text", "net.widths=[16,32]", "seed=7", "optimizer@optim.generator=sgd"])
    assert config.net.widths == [16, 32]
    assert config.seed == 7
    assert config.optim.generator._target_ == "torch.optim.SGD"
    assert config.optim.discriminator._target_ == "torch.optim.AdamW"


def test_every_argument_of_a_constructor_is_an_option() -> None:
    words = ["generator.sigma_data=0.6", "objective=grpo", "objective.reward.seed=3", "net.time_dim=64"]
    words += [
        "conditioner=clip",
        "conditioner.path=x",
        "conditioner.length=64",
        "optim.generator.amsgrad=true",
    ]
    config = load([*words, "logger=csv", "logger.csv.prefix=a", "objective.patience=3"])
    assert (config.generator.sigma_data, config.objective.reward.seed, config.net.time_dim) == (0.6, 3, 64)
    assert (config.conditioner.length, config.optim.generator.amsgrad) == (64, True)
    assert (config.logger.csv.prefix, config.objective.patience) == ("a", 3)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("generator.sigma_data=a", "generator.sigma_data=a is not a number"),
        ("optim.generator.amsgrad=3", "optim.generator.amsgrad=3 is not true or false"),
        ("net.channels=3", "unknown option 'net.channels'"),  # which follows from the data
        ("data.seed=3", "unknown option 'data.seed'"),
        ("rollback.max_bad=2", "rollback.max_bad=2 is not a number from 0 to 1"),
        ("data.max_bad=0.1", "data.max_bad has another name now: write rollback.max_bad=..."),
    ],
)
def test_arguments_are_checked_though_no_file_repeats_them(word: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        load([word])
    assert said in str(error.value)


def test_interpolations_are_resolved() -> None:
    config = load(["steps=7"])
    assert config.objective.game.jumps.steps == config.evaluate.steps == 7


def test_whole_numbers_may_be_written_as_powers_of_ten() -> None:
    images = load(["images=2e6"]).images
    assert images == 2_000_000
    assert isinstance(images, int)


def test_a_null_and_a_mapping_are_values() -> None:
    assert load(["experiment=digits", "objective.warm=null"]).objective.warm is None
    config = load(["optim.clip.generator=null", "conditioner={dim: 16, heads: 2}"])
    assert config.optim.clip.generator is None
    assert (config.conditioner.dim, config.conditioner.heads, config.conditioner.layers) == (16, 2, 2)
    config = load(["evaluate={n: 10}", "steps=3"])  # beside references of the file's
    assert (config.evaluate.n, config.evaluate.steps) == (10, 3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["imags=3"], "unknown option 'imags'; did you mean images"),
        (["+foo=3"], "unknown option 'foo'"),
        (["++generator.foo=3"], "unknown option 'generator.foo'"),
        (["generator={zdim: 3}"], "unknown option 'generator.zdim'; did you mean generator.z_dim"),
        (
            ["learning_rate=3"],
            "did you mean optim.generator.lr, optim.discriminator.lr?  (all options: lmsd train --options)",
        ),
        (["nets=mlp"], "did you mean net"),
        (["net=mpl"], "net 'mpl' not found; did you mean mlp?; available: dit_label"),
        (["optimizer@optim.generator=adm"], "did you mean adam"),
        (["optimizer=adam"], "write optimizer@optim.generator=adam or"),
        (["times=edm"], "times@objective.times=edm"),
        (["seed=abc"], "seed=abc is not a whole number"),
        (["seed=1.5"], "seed=1.5 is not a whole number"),
        (["seed=true"], "seed=true is not a whole number"),
        (["evaluate.guidance=a"], "evaluate.guidance=a is not a number"),
        (["compile=3"], "compile=3 is not true or false"),
        (["evaluate.seeds=3"], "write evaluate.seeds=[3]"),
        (["optim.clip=3"], "optim.clip.generator"),
        (["name=[a,b]"], "is not a name of 1 to 100 characters without a slash, but a list"),
        (["model.learning_rate=3"], "did you mean optim.generator.lr, optim.discriminator.lr?"),
        (["+trainer.max_epochs=3"], "unknown option 'trainer.max_epochs'; did you mean images?"),
        (["net.wdth=3"], "did you mean net.width, net.depth?  (all options: lmsd train --options net)"),
        (["net={widht: 3}"], "unknown option 'net.widht'; did you mean net.width"),
        (["seed=1,2"], "write a list as seed=[1,2], or try each: lmsd sweep seed=1,2"),
        (["seed=range(1,3)"], "write a list"),
        (["foo"], "write option=value"),
        (["--foo"], "write option=value"),
        (["seed=[1"], "write option=value"),
        (["~seed"], "cannot be taken away"),
        (["name=${nothing}"], "does not resolve"),
    ],
)
def test_a_mistake_is_one_sentence(words: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        load(words)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "gone"),
    [
        (["experiment=shapes", "net=unet_pooled"], "net.width, net.depth"),
        (
            ["experiment=cifar10", "conditioner=label"],
            "conditioner.vocab, conditioner.layers, conditioner.heads, conditioner.length, conditioner.std",
        ),
        (
            ["experiment=cifar10", "discriminator=mlp"],
            "discriminator.trunk.widths, discriminator.trunk.patch",
        ),
        (["experiment=shapes", "discriminator=trunk"], "discriminator.trunk"),
        (["experiment=digits", "optimizer@optim.generator=sgd"], "optim.generator.betas"),
        (["experiment=digits_reward", "objective=nft"], "objective.policy, objective.reference"),
        (["experiment=digits_reward", "objective=draft"], "objective.advantages, objective.reference"),
    ],
)
def test_another_choice_drops_what_the_recipe_sets_for_its_own(words, gone, capsys) -> None:
    config, plain = load(words), load(words[:1])
    assert capsys.readouterr().err == f"note: left out for {words[1]}, which takes none: {gone}\n"
    known, before = flatten(config), flatten(plain)
    for key in gone.split(", "):
        assert not any(name == key or name.startswith(f"{key}.") for name in known)
        assert any(name == key or name.startswith(f"{key}.") for name in before)
    assert config.images == plain.images


@pytest.mark.parametrize("objective", ["ladd", "apt"])
def test_what_a_choice_chooses_in_turn_drops_as_much(objective, capsys) -> None:
    words = [f"objective={objective}", "experiment=digits"]
    assert load(words).discriminator["_target_"].endswith("TrunkDiscriminator")
    taken = "note: left out for discriminator=trunk, which takes none: discriminator.trunk\n"
    assert capsys.readouterr().err == taken
    assert "trunk" in load([*words, "discriminator=mlp"]).discriminator  # a word is stronger


def test_what_neither_choice_takes_stays_a_mistake(tmp_path, monkeypatch, capsys) -> None:
    with pytest.raises(UserError, match=r"unknown option 'net\.width'"):  # typed, and of another net
        load(["experiment=shapes", "net=unet_pooled", "net.width=64"])
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nnet: {width: 64, dpth: 2}\n",
    )
    monkeypatch.setenv("LMSD_CONFIG_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"unknown option 'net\.dpth'"):
        load(["experiment=mine", "net=unet_pooled"])
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "mine.yaml").write_text("_target_: lmsd.models.backbones.MLPBackbone\nwidht: 64\n")
    with pytest.raises(UserError, match=r"unknown option 'net\.widht'"):
        load(["experiment=shapes", "net=mine"])


def test_own_folders_add_groups_and_choices(tmp_path, monkeypatch) -> None:
    (tmp_path / "schedule").mkdir()
    (tmp_path / "schedule" / "mine.yaml").write_text("_target_: lmsd.process.schedules.Cosine\nsteps: 12\n")
    monkeypatch.setenv("LMSD_CONFIG_DIR", str(tmp_path))
    assert "mine" in groups()["schedule"]
    assert "article" in groups()["schedule"]
    assert load(["schedule=mine"]).schedule.steps == 12
    monkeypatch.setenv("LMSD_CONFIG_DIR", str(tmp_path / "absent"))
    with pytest.raises(UserError, match="which is no folder"):
        load([])


def test_every_group_on_disk_is_known() -> None:
    folders = {path.parent.name for path in config_dir().glob("*/*.yaml")}
    assert folders == set(groups())
    for name, choices in groups().items():
        for choice in choices:
            check_choice(parse(f"{name}@somewhere={choice}"), groups())


def test_flatten_names_leaves_and_keeps_interpolations() -> None:
    found = flatten(load([]))
    assert found["optim.clip.discriminator"] is None
    assert found["logger.auto"] is True
    assert found["optim.generator.betas"] == [0.9, 0.99]
