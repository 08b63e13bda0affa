"""Every choice of every group of `lmsd train`: each option of its node, changed alone, changes a result.

Six updates of a tiny run are played without Lightning, and what they logged, the weights of all players, what
the objective finds on held-out images, and samples are compared. The values come from the option's own kind:
the other choices of a list, twice or half a number, the other of true and false, null.

What an option says of itself (`When`) may leave it unread: then it is refused. SAME names those that change
nothing here, with what they are for and where that is tested.
"""

import contextlib
import io
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from tiny_home import inside, spoken

from lmsd.cli.build import experiment
from lmsd.cli.build.roles import check_roles
from lmsd.cli.config import schema
from lmsd.cli.config.compose import groups, load
from lmsd.errors import UserError
from lmsd.rng import Rng
from lmsd.sampling import Generation, Settings

for _folder in ("data", "models"):
    sys.path.insert(0, str(Path(__file__).parents[1] / _folder))
import tiny_pipelines  # noqa: E402
from tars import encoded, picture, write_tar  # noqa: E402

UPDATES, BATCH, SIDE = 6, 16, 16
WORDS = ["a red circle", "a blue ring", "a large green star", "a small dark cross"]
BASE = [
    "data.shards=data",
    f"data.image_size={SIDE}",
    f"images={UPDATES * BATCH}",
    f"batch_size={BATCH}",
    "accelerator=cpu",
    "optim.warmup_images=0",
    "optim.ema=[64]",
    "evaluate.n=0",
]
TEXT = ["conditioner={dim: 16, heads: 2, vocab: 514, layers: 1}"]
SMALL = ["net.width=16", "net.depth=1"]
CRITIC = ["discriminator.trunk.width=16", "discriminator.trunk.depth=1"]
GAME = [*TEXT, *SMALL, *CRITIC]
ALONE = [*TEXT, *SMALL, "objective=denoising", "schedule=cosine"]
REWARDED = [*TEXT, *SMALL, "schedule=cosine", "evaluate.guidance=2"]
OWN = ["objective=autoencoder", "codec.widths=[8,16]", "discriminator.widths=[8,16]", "objective.width=8",
       "objective.start=0.17", "optim.codec.lr=1e-2"]  # fmt: skip
TAUGHT = "init_from={generator: outputs/teacher@ema, teacher: outputs/teacher@ema}"

Values = Mapping[str, list[Any]]


@dataclass(frozen=True)
class Choice:
    """A choice of a group: the words of a run with it, and the place of its node.

    values: of options, by the end of their names, in place of those that their kinds suggest; same: those
    that change nothing here, with the reason.
    """

    words: list[str]
    place: str
    values: Values = field(default_factory=dict)
    same: Mapping[str, str] = field(default_factory=dict)


FITTED = {"calibrate": "heads of six updates tell nothing: tests/objectives/test_distill.py"}
STOPS = {"patience": "ends a run without usable rewards: tests/objectives/test_policy.py, test_draft.py"}
PLAYED = {
    "game.bound": [0.05],
    "settings.bound": [0.05],
    "mismatch.captions": [["a cat", "a dog"]],
    "warm.caption_dropout": [0.9],
    "anchor.kappa": [0.01],
    "game.diversity_every": [0, 2],
    "judged.levels": [[0.3]],
}
ONE_JUMP = {**PLAYED, "game.pairing": ["transition"]}
"""A jump from noise to images lands on x̂₀ itself: ode and marginal are one there."""
REWARDS = {
    "advantages.bound": [0.01],
    "advantages.history": [4],
    "advantages.min_history": [30],
    "update.clip": [1e-6],
    "refresh": [],
}
SCORED = ["objective.group=4", "objective.settings.guidance=2", "objective.settings.interval=null"]


def game(name: str, *words: str, **more: Any) -> Choice:
    return Choice([*GAME, f"objective={name}", *words], "objective", **{"values": PLAYED, **more})


def rewarded(name: str, *words: str, reward: str = "sharpness", **more: Any) -> Choice:
    chosen = [*REWARDED, f"objective={name}", f"reward@objective.reward={reward}", *SCORED, *words]
    return Choice(chosen, **{"place": "objective", "values": REWARDS, "same": STOPS, **more})


def part(group: str, name: str, *words: str, **more: Any) -> Choice:
    return Choice([*ALONE, f"{group}={name}", *words], group, **more)


CHOICES: dict[str, Choice] = {
    "objective=lmsd": game(
        "lmsd", "schedule=cosine", "objective.warmup=0.17", "objective.head_start=0.17",
        "objective.game.diversity_every=1", "objective.game.mismatch.weight=0.5",
    ),
    "objective=ddgan": game("ddgan", "schedule=cosine", "objective.game.diversity_every=1"),
    "objective=cgan": game("cgan", "objective.game.diversity_every=1", values=ONE_JUMP),
    "objective=r3gan": game("r3gan", "objective.game.diversity_every=1", values=ONE_JUMP),
    "objective=article": Choice([*TEXT, *SMALL, "objective=article", "schedule=cosine"], "objective"),
    "objective=denoising": Choice(ALONE, "objective"),
    "objective=afm": game("afm", "schedule=cosine", "objective.game.diversity_every=1"),
    "objective=apt": Choice([*TEXT, *SMALL, "objective=apt"], "objective", PLAYED),
    "objective=cafm": Choice(
        [*GAME, "objective=cafm", "objective.alone=1", "objective.every=2"], "objective", PLAYED
    ),
    "objective=meanflow": Choice([*TEXT, *SMALL, "objective=meanflow"], "objective"),
    **{
        f"objective={name}": Choice(
            [*TEXT, *SMALL, *words, f"objective={name}", TAUGHT], "objective", PLAYED, FITTED
        )
        for name, words in (
            ("dmd2", []),
            ("f_distill", []),
            ("decoupled_dmd", []),
            ("adv_dmd", []),
            ("ladd", ["schedule=cosine"]),
        )
    },
    "objective=edit": Choice([*TEXT, *SMALL, "objective=edit", "schedule=cosine"], "objective"),
    "objective=inpaint": Choice([*TEXT, *SMALL, "objective=inpaint", "schedule=cosine"], "objective"),
    "objective=autoencoder": Choice(
        OWN, "objective", {**PLAYED, "widths": [[8, 8]], "seed": [7], "equivariance": [1.0]}
    ),
    "codec=own": Choice(OWN, "codec", {"widths": [[8, 8]]}),
    "discriminator=patch": Choice(OWN, "discriminator", {"widths": [[8, 8]]}),
    "objective=preserved": Choice(
        [*TEXT, *SMALL, "objective=preserved", "schedule=cosine", "objective.prompts=[a ring]",
         "objective.own=8", "init_from=outputs/teacher@ema"], "objective", {"prompts": [["a red ring"]]},
    ),
    "objective=draft": rewarded("draft"),
    "objective=dpo": rewarded("dpo"),
    "objective=ddpo": rewarded(
        "ddpo", "objective.advantages.min_history=1", "objective.windows.size=2",
        "objective.reference.weight=0.1", "objective.update.epochs=2",
    ),
    "objective=grpo": rewarded("grpo", "objective.windows.size=2", "objective.update.epochs=2"),
    "objective=nft": rewarded("nft", "objective.old.ramp=0.4"),
    **{
        f"schedule={name}": Choice(
            [*TEXT, *SMALL, "objective=denoising", f"schedule={name}", *words], "schedule"
        )
        for name, words in (
            ("linear", ()),
            ("scaled_linear", ()),
            ("cosine", ()),
            ("flow", ()),
            ("edm", ("generator.precondition=edm",)),
            ("article", ("schedule.steps=20", "steps=4")),
        )
    },
    **{
        f"sampler={name}": part("sampler", name)
        for name in ("ancestral", "ddim", "dpmpp", "heun", "plms", "few_step")
    },
    "sampler=direct": Choice(
        [*TEXT, *SMALL, "objective=article", "objective.game.predict=previous", "generator.prediction=x0",
         "sampler=direct"], "sampler",
    ),
    "times=uniform": Choice([*ALONE, "times@objective.times=uniform"], "objective.times"),
    "times=logit_normal": Choice([*ALONE, "times@objective.times=logit_normal"], "objective.times"),
    "times=shifted": Choice([*ALONE, "times@objective.times=shifted"], "objective.times"),
    "times=grid": Choice([*ALONE, "times@objective.times=grid"], "objective.times"),
    "times=edm": Choice(
        [*ALONE[:-1], "times@objective.times=edm", "schedule=edm", "generator.precondition=edm"],
        "objective.times",
    ),
    "net=mlp": part("net", "mlp"),
    **{
        f"net={name}": Choice([*TEXT, f"net={name}", "objective=denoising", *words], "net", values)
        for name, words, values in (
            ("unet_conv", (), {}),
            ("unet_pooled", (), {"attention": [[True, False, False]]}),
            ("unet_text", (), {"attention": [[True, False, False]]}),
            ("transformer_text", (), {}),
            ("uvit", ("net.width=32", "net.layers=3", "net.heads=2", "net.context=32"), {}),
        )
    },
    "net=dit_label": Choice(
        ["net=dit_label", "objective=denoising", "conditioner=label", "conditioner.classes=4",
         "net.classes=4", "generator.z_dim=0"], "net",
    ),
    "discriminator=mlp": Choice([*TEXT, *SMALL, "discriminator=mlp"], "discriminator"),
    "discriminator=conv": Choice([*TEXT, *SMALL, "discriminator=conv"], "discriminator"),
    "discriminator=autoencoder": Choice(
        [*TEXT, *SMALL, "discriminator=autoencoder", "objective=article"], "discriminator"
    ),
    "discriminator=trunk": Choice(
        [*TEXT, *SMALL, "discriminator=trunk", "objective.game.pairing=marginal"], "discriminator"
    ),
    "conditioner=text": Choice(ALONE, "conditioner"),
    "conditioner=none": Choice([*SMALL, "objective=denoising", "conditioner=none"], "conditioner"),
    "conditioner=label": Choice(
        [*SMALL, "objective=denoising", "conditioner=label", "conditioner.classes=4"], "conditioner"
    ),
    "conditioner=clip": Choice(
        [*SMALL, "objective=denoising", "conditioner=clip", "conditioner.path=clip"], "conditioner",
        {"length": [5]},
    ),
    "conditioner=t5": Choice(
        [*SMALL, "objective=denoising", "conditioner=t5", "conditioner.path=t5"], "conditioner",
        {"length": [3]},
    ),
    "codec=identity": part("codec", "identity"),
    "codec=unshuffle": part("codec", "unshuffle"),
    "codec=taef2": part("codec", "taef2", "codec.path=taef2"),
    "codec=autoencoder": part("codec", "autoencoder", "codec.path=vae"),
    "generator=parts": Choice(ALONE, "generator"),
    "optimizer=adam": Choice(
        [*ALONE, "optimizer@optim.generator=adam", "optim.generator.weight_decay=0.1"], "optim.generator"
    ),
    "optimizer=adamw": Choice(ALONE, "optim.generator"),
    "optimizer=muon": Choice(
        [*ALONE, "optimizer@optim.generator=muon", "optim.generator.weight_decay=0.1"], "optim.generator"
    ),
    "optimizer=sgd": Choice([*ALONE, "optimizer@optim.generator=sgd"], "optim.generator"),
    "reward=sharpness": rewarded("draft", place="objective.reward"),
    "reward=jpeg": rewarded("ddpo", reward="jpeg", place="objective.reward"),
}  # fmt: skip
SPEED = "how the same is computed"
SAME = {
    "fused": SPEED,
    "foreach": SPEED,
    "capturable": SPEED,
    "differentiable": "refused by the optimizer where it cannot be",
}
"""Options of torch's optimizers that change nothing but the time, whatever they are set to."""
ELSEWHERE = {
    "callbacks": "screens: tests/cli/test_screens.py",
    "logger": "records: tests/cli/test_wandb.py, test_train_options.py",
    "recipe": "values of other groups",
    "experiment": "values of other groups",
    "trainer": "values of the root: tests/cli/test_train_options.py",
    "debug": "values of the root: tests/cli/test_main.py",
    "data": "tests/cli/test_train_options.py",
    "objective=fd_loss": "tests/objectives/test_fd_loss.py: it needs a classifier's folder",
    "codec=trained": "tests/cli/test_codec_runs.py, tests/models",
    "generator=none": "of objective=autoencoder: it has no options",
    "times=levels": "of objective=cafm and dmd2: their options above",
    "generator=pipeline": "tests/cli/verbs/test_pipelines.py",
    "generator=run": "tests/cli/verbs/test_tuned_runs.py",
    "tuning": "tests/tuning, tests/cli/verbs/test_tuned_runs.py",
    "objective=robust": "tests/objectives/test_robust.py",
    "objective=continual": "tests/objectives/test_continual.py: it wraps another objective",
    "reward=aesthetic": "tests/rewards/test_models.py",
    "reward=alignment": "tests/rewards/test_models.py",
    "reward=classifier": "tests/rewards/test_models.py",
    "reward=discriminator": "tests/rewards/test_discriminator_reward.py",
    "reward=function": "tests/rewards/test_base.py",
    "reward=service": "tests/rewards/test_service.py",
    "reward=shapes": "tests/rewards/test_base.py",
    "reward=sum": "tests/rewards/test_base.py",
}


def test_the_table_names_every_choice() -> None:
    choices = {f"{group}={name}" for group, names in groups().items() for name in names}
    left = {
        choice for choice in choices - set(CHOICES) - set(ELSEWHERE) if choice.split("=")[0] not in ELSEWHERE
    }
    assert left == set()


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards of captions and classes, and tiny pretrained parts of random weights."""
    from transformers import T5Config, T5EncoderModel

    from lmsd.models.autoencoder import _decoder, _encoder

    folder = tmp_path_factory.mktemp("choices")
    (folder / "data").mkdir()
    for split, first, count in (("train", 0, 64), ("val", 100, 24)):
        members = [
            (f"{index:04d}.{end}", content)
            for index in range(count)
            for end, content in (
                ("png", encoded(picture(first + index, SIDE))),
                ("source.png", encoded(picture(first + index + 1, SIDE))),
                ("txt", WORDS[(index + index // 4) % 4].encode()),  # neighbors and groups of four differ
                ("cls", str(index % 4).encode()),
            )
        ]
        write_tar(folder / "data" / f"{split}-000000.tar", members)
    with inside(folder):
        words = [
            "optim.generator.lr=1e-2",
            "objective=denoising",
            "images=160",
            "run_dir=outputs/teacher",
            "name=teacher",
        ]
        spoken(["train", *BASE, *TEXT, *SMALL, *words])
    torch.manual_seed(0)
    tiny_pipelines.clip_tokenizer(folder / "clip").save_pretrained(folder / "clip")
    tiny_pipelines.clip().save_pretrained(folder / "clip")
    tiny_pipelines.words_tokenizer().save_pretrained(folder / "t5")
    T5EncoderModel(
        T5Config(vocab_size=600, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    ).save_pretrained(folder / "t5")
    tiny_pipelines.vae(sample_size=SIDE).save_pretrained(folder / "vae")
    (folder / "taef2").mkdir()
    for half, net in (("encoder", _encoder(64, 32)), ("decoder", _decoder(64, 32))):
        torch.save(net.state_dict(), folder / "taef2" / f"taef2_{half}.pth")
    return folder


@pytest.fixture
def inside_of(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    monkeypatch.setenv("LMSD_CACHE", str(place / "cache"))
    return place


def played(words: list[str]) -> dict[str, torch.Tensor]:
    """What six updates log and leave behind, by name. Raises UserError for a run that is refused."""
    config = load(words, run=True)
    with contextlib.redirect_stdout(io.StringIO()):
        built = experiment.build(config)
    check_roles(words, config, built.cast)
    engine, train = built.engine, built.data.shards.split_set("train")
    engine.configure_optimizers()
    engine.seats.switch(on=False)
    found: dict[str, torch.Tensor] = {}
    for update in range(UPDATES):
        batch = train.batch([(update * BATCH + row) % len(train) for row in range(BATCH)])
        scripts = [
            engine.objective.turns(engine.roles, piece, engine.clock, Rng(engine.seed, piece.position))
            for piece in engine._pieces(batch)
        ]
        for turns in engine._rounds(scripts):
            engine._play(turns)
        engine.clock.images += engine.batch_size
        found |= {
            f"logs {update} {name}": torch.tensor(value)
            for name, value in engine.meter.read().items()
            if "seconds" not in name
        }
    states = engine.players.state_dict().items()
    found |= {name: value.clone() for name, value in states if isinstance(value, torch.Tensor)}
    lead = engine.roles[engine.objective.lead]
    rng = Rng(0, batch.position)
    encoded_batch = batch if "generator" not in engine.roles else lead.encode(batch)
    found |= {
        f"probe {name}": torch.as_tensor(value)
        for name, value in engine.objective.probe(engine.roles, encoded_batch, rng).items()
    }
    if "generator" not in engine.roles:
        return found
    settings = Settings(config.steps, guidance=config.evaluate.guidance)
    asked = train.batch(range(4))
    make = Generation(lead, experiment.instantiate(config.sampler), settings)
    return found | {"samples": make(asked, Rng(0, asked.position))}


def difference(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> str | None:
    """The first name whose numbers differ, or that is in one of the two only."""
    for name in one.keys() | other.keys():
        if name not in one or name not in other or one[name].shape != other[name].shape:
            return name
        if not torch.equal(one[name].double().nan_to_num(), other[name].double().nan_to_num()):
            return name
    return None


def changes(option: schema.Option) -> Iterator[Any]:
    """Other values of an option, by its kind."""
    value, own = option.value, option.value if isinstance(option.value, list) else []
    number = isinstance(value, int | float) and not isinstance(value, bool)
    for kind in option.kind.parts if option.kind else ():
        match kind.get("type"):
            case "boolean":
                yield not value
            case "integer":
                yield (2 * value or 1) if number else max(2, kind.get("minimum", 0))
            case "number":
                half = value / 2 if number and value else 0.5
                yield half if kind.fits(half) else 2 * value
            case "array" if all(isinstance(item, int | float) for item in own):
                yield [item / 2 if isinstance(item, float) else item * 2 for item in own] or [0.5, 0.9]
            case "null" if value is not None:
                yield None
        yield from (item for item in kind.get("enum", ()) if item != value)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHOICES)
def test_every_option_of_a_choice_matters(name: str, inside_of: Path) -> None:
    choice = CHOICES[name]
    rate = ["optim.generator.lr=1e-2"] if "optim.codec.lr=1e-2" not in choice.words else []
    words = [*BASE, *rate, *choice.words]
    start, tree = played(words), OmegaConf.to_container(load(words))
    idle = []
    for option in schema.root(tree).at(choice.place).leaves():
        end = [key for key in choice.values if option.key.endswith(f".{key}")]
        last = option.key.rpartition(".")[2]
        if last in SAME or last in choice.same:
            continue
        for value in choice.values[end[0]] if end else changes(option):
            try:
                found = difference(start, played([*words, f"{option.key}={json.dumps(value)}"]))
            except UserError as error:
                found = str(error)
            if found is None:
                idle.append(f"{option.key}={value}")
    assert idle == []
