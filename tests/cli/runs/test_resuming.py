"""Going on with a run: what may change, and a longer one that has all that the first one had."""

from pathlib import Path

import pytest
import torch

from lmsd.checkpoints import find, read, tensors
from lmsd.cli.config.compose import load, parse
from lmsd.cli.runs import store
from lmsd.cli.runs.resuming import accept, changed, extended
from lmsd.errors import UserError
from lmsd.types import Sizes

TOLD = ["images=64", "batch_size=32", "name=own", "data.shards=data", "accelerator=cpu", "evaluate.n=0"]
HARMLESS = [
    ("logger=wandb", "logger.wandb.project", "lmsd"),
    ("logger=csv", "logger.csv.name", "csv"),
    ("trainer=cpu", "accelerator", "cpu"),
    ("profiler=simple", "profiler", "simple"),
    ("checkpointing=true", "checkpointing", True),
    ("callbacks.progress.seconds=1", "callbacks.progress.seconds", 1),
    ("~callbacks.progress", "callbacks", {}),
    ("callbacks=none", "callbacks", {}),
    ("net=mlp", "net.width", 128),
]


@pytest.mark.parametrize(("word", "key", "value"), HARMLESS, ids=[row[0] for row in HARMLESS])
def test_what_is_harmless_is_taken(word: str, key: str, value: object) -> None:
    from omegaconf import OmegaConf

    config, given = changed(load([*TOLD, "net.width=128"]), [parse(word)])
    given.pop("net.width", None)  # the file's own value, which the test gives another one
    accept(config, given, Path("run"))
    assert OmegaConf.select(config, key) == value


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (
            "net=unet_pooled",
            "net._target_: lmsd.models.backbones.MLPBackbone -> lmsd.models.backbones.PooledUNet",
        ),
        (
            "images=128",
            "images: 64 -> 128; leave them out, train longer (lmsd train extend=run images=MORE)",
        ),
        ("seed=3", "seed: 0 -> 3"),
        ("trainer=gpus", "trainer 'gpus' not found; did you mean gpu?"),
    ],
)
def test_what_is_not_is_refused_by_what_it_sets(word: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        accept(*changed(load(TOLD), [parse(word)]), Path("run"))
    assert said in str(error.value)


def run_of(home: Path, name: str, *words: str) -> Path:
    from tiny_home import TINY, spoken

    plain = [word for word in TINY if not word.startswith(("images=", "evaluate.", "discriminator."))]
    plain += ["objective=denoising", "optim.decay=constant", "evaluate.n=0", "data.shards=data/shapes"]
    spoken(["train", *plain, f"run_dir=outputs/{name}", *words])
    return Path("outputs", name)


def test_a_longer_run_is_bit_for_bit_what_one_run_would_be(home) -> None:
    """With a constant rate and no phases: weights, averages and moments after 128 + 64 images are of 192."""
    from tiny_home import spoken

    first, whole = run_of(home, "half", "images=128"), run_of(home, "whole", "images=192")
    said = spoken(["train", f"extend={first}", "images=192", "run_dir=outputs/longer"])
    assert "Extending outputs/half/checkpoints/step_000000128.ckpt from 128 to 192 images" in said
    longer = Path("outputs/longer")
    assert store.status(longer)["state"] == "done"
    ours, theirs = (dict(tensors(read(find(folder)))) for folder in (longer, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert store.status(first)["images"] == 128
    assert [line["images"] for line in store.scored(longer, "generator/loss")] == [160, 192]


def test_what_cannot_be_trained_longer_leaves_no_run_behind(home, refused) -> None:
    before = sorted(Path("outputs").iterdir())
    for word, said in (("devices=3", "does not divide by 3 devices"), ("data.shards=nowhere", "nowhere")):
        assert said in refused("train", "extend=outputs/first", "images=400", word)
    assert sorted(Path("outputs").iterdir()) == before


def test_it_has_to_be_longer_and_the_same_run(home) -> None:
    for words, said in (
        (["extend=outputs/first"], "has seen 192 images: say how many in all, images=MORE"),
        (["extend=outputs/first", "images=100"], "has seen 192 images"),
        (
            ["extend=outputs/first", "images=400", "optim.generator.lr=1.0"],
            "generator.lr: 0.0002 -> 1.0",
        ),
        (["extend=outputs/first", "resume=auto", "images=400"], "leave resume= and init_from= out"),
    ):
        with pytest.raises(UserError) as error:
            extended(words)
        assert said in str(error.value)
    assert extended(["images=400"]) is None


def test_phases_that_were_over_stay_over() -> None:
    """A warm start of a quarter: over at 40 of 40 images, and 40 of 400 are a tenth."""
    from lmsd.objectives import Adversarial, Denoising, warm_start
    from lmsd.process.times import Jumps, Uniform
    from lmsd.types import Clock

    method = warm_start(Adversarial(Jumps(4)), warmup=0.25, warm=Denoising(Uniform()), head_start=0.1)
    clock = Clock(400, "generator")
    clock.load_state_dict({"images": 40, "updates": 5, "played": {"discriminator": 3}, "reached": 1.0})
    assert (clock.progress, clock.furthest) == (0.1, 1.0)
    assert clock.state_dict()["reached"] == 1.0
    starts = [start for start in method.starts if start <= clock.furthest]
    assert len(starts) == len(method.phases) == 2
    assert warm_plays(method, clock) == {"generator", "discriminator"}
    assert warm_plays(method, Clock(400, "generator", images=40)) == {"generator"}


def warm_plays(method, clock) -> set[str]:
    """Who has a turn at this moment."""
    import torch

    from lmsd.models.backbones import MLPBackbone
    from lmsd.models.conditioner import LabelConditioner
    from lmsd.models.discriminator import Discriminator
    from lmsd.models.generator import Generator
    from lmsd.nets.critics import MLPCritic
    from lmsd.process.gaussian import Process
    from lmsd.process.schedules import Article
    from lmsd.rng import Rng
    from lmsd.types import Batch

    process, position = Process(Article(4)), torch.arange(2)
    net = MLPBackbone(Sizes(1, 4, pooled_dim=8, z_dim=4), width=8, depth=1, time_dim=8)
    made = Generator(net, process, prediction="x0", conditioner=LabelConditioner(3, 8), z_dim=4)
    judge = Discriminator(MLPCritic((2, 4, 4), 8, depth=1, time_dim=8, cond_dim=8), process=process,
                          cond_dim=8, features=8)  # fmt: skip
    batch = Batch(x=torch.zeros(2, 1, 4, 4), position=position, label=torch.zeros(2, dtype=torch.long))
    players = {"generator": made, "discriminator": judge}
    return {turn.player for turn in method.turns(players, batch, clock, Rng(0, position))}
