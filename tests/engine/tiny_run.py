"""A run small enough to compare to the last bit: two players, a stream by position, and how to fit them."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lmsd.engine.hardware import Hardware
from lmsd.engine.module import Engine
from lmsd.engine.optim import Optimization, adamw
from lmsd.engine.players import recompute
from lmsd.engine.trainer import fit
from lmsd.models.backbones import MLPBackbone
from lmsd.models.codec import Codec, Identity
from lmsd.models.conditioner import LabelConditioner
from lmsd.models.discriminator import Discriminator
from lmsd.models.fake_score import FakeScore
from lmsd.models.generator import Generator
from lmsd.nets.critics import MLPCritic
from lmsd.objectives import (
    CAFM,
    DPO,
    NFT,
    Adversarial,
    Anchor,
    Augment,
    Contrast,
    Denoising,
    Distill,
    DRaFT,
    FDLoss,
    Heads,
    Matching,
    MeanFlow,
    Normalizer,
    OldPolicy,
    Penalty,
    PolicyGradient,
    PostTraining,
    Reference,
    Refresh,
    Tilt,
    warm_start,
)
from lmsd.objectives.base import Part, trained
from lmsd.objectives.robust import Disturbances, RobustDenoising
from lmsd.process.gaussian import Process
from lmsd.process.schedules import Article, Flow
from lmsd.process.times import Grid, Jumps, Levels, Uniform
from lmsd.ranks import world_size
from lmsd.rewards import DiscriminatorReward, Reward, Sharpness
from lmsd.rewards.base import NOBODY
from lmsd.rng import Rng
from lmsd.sampling import Policy, Settings, Tau
from lmsd.types import Batch, Players, Sizes

SHAPE = (1, 4, 4)
SEED = 3


def samples(position: Tensor, dtype: torch.dtype = torch.float64) -> Batch:
    """The stream: image and class of each position, by its number alone."""
    rng = Rng(17, position)
    label = rng.integer(0, 3, (), "label")
    x = (rng.normal(SHAPE, "x") * 0.3 + label[:, None, None, None] / 2).clamp(-1, 1)
    return Batch(x=x.to(dtype), position=position, label=label)


class _Endless(IterableDataset):
    def __init__(self, start: int, batch_size: int, micro_batches: int, dtype: torch.dtype) -> None:
        self.start, self.batch_size, self.micro_batches, self.dtype = start, batch_size, micro_batches, dtype

    def __iter__(self) -> Iterator[Batch]:
        ranks, rank = world_size(), torch.distributed.get_rank() if world_size() > 1 else 0
        size = self.batch_size // ranks
        first = self.start + rank * size
        while True:
            for piece in torch.arange(first, first + size).chunk(self.micro_batches):
                yield samples(piece, self.dtype)
            first += self.batch_size


class Stream(LightningDataModule):
    """ShardDataModule's contract on `samples`."""

    def __init__(self, batch_size: int, micro_batches: int = 1, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.batch_size, self.micro_batches, self.dtype, self.position = batch_size, micro_batches, dtype, 0

    def train_dataloader(self) -> DataLoader:
        data = _Endless(self.position, self.batch_size, self.micro_batches, self.dtype)
        return DataLoader(data, batch_size=None)

    def advance(self, images: int) -> None:
        self.position += images

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.position = state["position"]


def players(
    *,
    dtype: torch.dtype = torch.float64,
    pairing: str = "transition",
    codec: Codec | None = None,
    flow: bool = False,
    smooth: bool = False,
) -> dict[str, torch.nn.Module]:
    """Generator and discriminator, the same each time; flow: of velocities."""
    torch.manual_seed(SEED)
    process = Process(Flow() if flow else Article(4))
    channels, side, _ = (codec or Identity()).shape_of(SHAPE)
    net = MLPBackbone(Sizes(channels, side, pooled_dim=8, z_dim=4), width=24, depth=2, time_dim=16)
    generator = Generator(
        net,
        process,
        prediction="velocity" if flow else "x0",
        conditioner=LabelConditioner(3, 8),
        z_dim=4,
        codec=codec,
    )
    marginal = pairing == "marginal"
    sides = (channels * (1 if marginal else 2), side, side)
    trunk = MLPCritic(sides, 24, depth=2, time_dim=16, cond_dim=8)
    critic = Discriminator(trunk, process=process, cond_dim=8, features=24, marginal=marginal, smooth=smooth)
    for parameter in [*generator.parameters(), *critic.parameters()]:
        if not parameter.any():  # zero-initialized layers would hide what lies behind them
            torch.nn.init.normal_(parameter, std=0.1)
    return {"generator": generator.to(dtype), "discriminator": critic.to(dtype)}


class Spotty(Sharpness):
    """No score at two places of every 24, which with two ranks one rank has; a slope that is NaN there."""

    def __call__(self, images: Tensor, batch: Batch, players: Players = NOBODY) -> Tensor:
        bad = (batch.position == 5) | (batch.position == 18)
        return super().__call__(images, batch) * torch.where(bad, torch.nan, 1.0)


OBJECTIVES = {
    "denoising": lambda: Denoising(Uniform()),
    "min_snr": lambda: Denoising(Uniform(), weighting="min_snr"),
    "lmsd": lambda: warm_start(Adversarial(Jumps(4), anchor=Anchor("energy")), warmup=0.25),
    "ddgan": lambda: Adversarial(Jumps(4), loss="nonsaturating", penalty=Penalty("exact", r2=False, lazy=2)),
    "marginal": lambda: Adversarial(Jumps(4), pairing="marginal", anchor=Anchor("mse_kl"), d_steps=2),
    "recipe": lambda: warm_start(
        Adversarial(Jumps(4, last=0.5), pairing="marginal", bound=1.0),
        warmup=0.3,
        warm=Denoising(Grid(4)),
        head_start=0.2,
        warm_rate=(4.0, 1.0),
        rate=(1.0, 0.1),
        freeze_text=True,
    ),
    "afm": lambda: warm_start(
        Adversarial(
            Jumps(4),
            pairing="ode",
            penalty=Penalty(center=0.01),
            anchor=Anchor("transport", weight=(0.25, 0.005), normalize=0.9),
        )
    ),
    "augmented": lambda: augmented(),
    "robust": lambda: RobustDenoising(Uniform(), disturb=Disturbances(attack=0.2, perturb=0.1, code=0.5)),
    "noisy": lambda: RobustDenoising(Uniform(), disturb=Disturbances(noisy=0.2)),
    "ladd": lambda: PostTraining(
        Tau(1.0), settings=Settings(2), starts="own", judged=Uniform(), teacher=Settings(2)
    ),
    "apt": lambda: PostTraining(Tau(1.0), settings=Settings(1), loss="nonsaturating"),
    "meanflow": lambda: MeanFlow(Uniform(), apart=0.5),
    "cafm": lambda: CAFM(Uniform(), alone=0, every=1),
    "fd_loss": lambda: FDLoss(features, decay=0.5),
    "hinge": lambda: Adversarial(Jumps(4), loss="hinge", penalty=Penalty("none")),
    "grpo": lambda: grpo(),
    "ddpo": lambda: gradient(Sharpness(), advantages=Normalizer("prompt", history=8, min_history=4)),
    "dpo": lambda: DPO(
        Uniform(), reward=Sharpness(), sampler=Tau(0), settings=Settings(2), group=2, beta=5.0
    ),
    "failing": lambda: gradient(Spotty(), group=2, reference=Reference(0.1)),
    "draft_failing": lambda: DRaFT(Policy(0.0), Spotty(), settings=FREE, last=2, group=2),
    "draft": lambda: DRaFT(Policy(0.0), Sharpness(), settings=FREE, last=2, reference_weight=0.1, group=2),
    "matching": lambda: documented("my_lmsd/matching.py", "Matching")(Uniform(), fake_turns=2),
    "dmd2": lambda: distill(heads=Heads(0.1, fake=0.1, penalty=Penalty(r2=False)), every=2),
    "f_distill": lambda: distill(matching=Matching("kl", guidance=2.0), heads=Heads(calibrate=1), every=1),
    "decoupled": lambda: distill(
        matching=Matching(guidance=2.0, surplus=Uniform()), starts="data", teacher=Settings(2), every=1
    ),
    "adv_dmd": lambda: distill(
        tilt=Tilt(0.5), judged=Levels((0.0, 2.0)), heads=Heads(loss="relativistic"), every=2
    ),
    "nft": lambda: NFT(
        Tau(0),
        Sharpness(),
        times=Uniform(),
        settings=Settings(2),
        group=2,
        old=OldPolicy(ramp=0.2),
        contrast=Contrast(reference_weight=0.1),
        advantages=Normalizer("prompt"),
    ),
}


def augmented() -> Adversarial:
    """A game whose augmentation follows the held-out gap and changes fast."""
    augment = Augment(
        "gap", transforms=["shift", "turn", "mirror", "cutout"], p=0.4, span=80, consistency=0.5
    )
    objective = Adversarial(Jumps(4), penalty=Penalty(augment=augment), anchor=Anchor("mse_kl"))
    augment.held = samples(torch.arange(1000, 1006))
    augment.updates = 2  # so that the strength changes within a short run
    return objective


def features(images: Tensor) -> Tensor:
    """Three numbers of an image, in place of an extractor's."""
    return torch.stack([images.mean((1, 2, 3)), images.square().mean((1, 2, 3)), images[:, 0, 1, 1]], dim=1)


FREE = Settings(3, bound=None)


def distill(**options: Any) -> Distill:
    """A student of two steps; logits that become weights are calibrated on held-out images."""
    objective = Distill(Uniform(), sampler=Tau(1.0), settings=Settings(2), **options)
    objective._held_out = samples(torch.arange(1000, 1006))
    return objective


def documented(file: str, name: str) -> Any:
    """A class out of the worked examples of docs/extending.md."""
    page = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
    space: dict[str, Any] = {}
    exec(page.partition(f"# {file}\n")[2].partition("```")[0], space)  # our own page
    return space[name]


def gradient(reward: Reward, **options: Any) -> PolicyGradient:
    """Over three noisy steps, relative to the group unless told otherwise."""
    options.setdefault("advantages", Normalizer("global"))
    return PolicyGradient(Policy(last_std=0.1), reward, settings=FREE, **options)


def grpo() -> PolicyGradient:
    """With all that has a state or looks at other ranks: a calibrated judge that keeps up."""
    objective = gradient(
        DiscriminatorReward(), group=2, reference=Reference(0.1), refresh=Refresh(every=2, turns=1)
    )
    objective.held_out = samples(torch.arange(1000, 1006))
    return objective


def cast_for(objective: Any, **options: Any) -> dict[str, torch.nn.Module]:
    """The players that an objective plays with, the frozen ones among them."""
    judge = objective.cast.get("discriminator", Part(given={"marginal": False}))
    options["pairing"] = "marginal" if judge.given["marginal"] else "transition"
    options |= {"smooth": "smooth" in judge.given, "flow": isinstance(objective, CAFM | MeanFlow)}
    cast = players(**options)
    for name, part in objective.cast.items():
        if name == "fake" and part.like is None:
            torch.manual_seed(SEED)
            cast[name] = FakeScore(cast["generator"], cond_dim=8, width=8).double()
        cast[name] = cast.get(name) or players(**options)["generator"]
        cast[name].requires_grad_(part.trained)
    return cast


def engine(name: str = "lmsd", *, batches: int = 6, batch_size: int = 8, **options: Any) -> Engine:
    """An engine for `batches` global batches."""
    objective = OBJECTIVES[name]() if "objective" not in options else options.pop("objective")
    cast = options.pop("players", None) or cast_for(objective)
    makers = options.pop("optimizers", None) or dict.fromkeys(trained(objective.cast), adamw)
    spans = options.pop("ema", ())
    optimization = Optimization(
        makers,
        clips=options.pop("clip", {}),
        averages=spans if isinstance(spans, dict) else {objective.lead: spans},
        warmup_images=options.pop("warmup_images", 0),
        decay=options.pop("lr_decay", "constant"),
    )
    if options.pop("gradient_checkpointing", False):
        recompute(cast["generator"])
    defaults: dict[str, Any] = {"seed": SEED, "total_images": batches * batch_size, "log_every": batch_size}
    return Engine(cast, objective, optimization, batch_size=batch_size, **{**defaults, **options})


def run(subject: Engine, folder: Path, *, loader_pieces: int = 1, **options: Any) -> Any:
    """Fit on the stream, on one CPU process unless told otherwise."""
    data = options.pop("datamodule", None) or Stream(subject.batch_size, loader_pieces)
    names = {field.name for field in fields(Hardware)} & options.keys()
    hardware = Hardware(accelerator="cpu", **{name: options.pop(name) for name in names})
    return fit(subject, data, run_dir=folder, hardware=hardware, **options)
