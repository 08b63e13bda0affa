"""Small float64 players over the real floors, and a plain loop that plays turns as the engine does."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lmsd.models.conditioner import Conditioner
from lmsd.models.discriminator import Discriminator
from lmsd.models.generator import Generator
from lmsd.nets.critics import MLPCritic
from lmsd.objectives import Adversarial, Anchor, Mismatch, Penalty, warm_start
from lmsd.process.gaussian import Process
from lmsd.process.schedules import Article
from lmsd.rng import Rng
from lmsd.types import Batch, Clock, Cond

CAPTIONS = ("a cat", "a dog", "a fox", "an owl")
SHAPE = (2, 3, 3)


@dataclass
class TinyClock(Clock):
    total_images: int = 1000
    lead: str = "generator"
    updates: int = 0


class Words(Conditioner):
    """A table with one row for each caption and one for none; remembers the captions it was asked for."""

    pooled_dim = 3

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(len(CAPTIONS) + 1, self.pooled_dim)
        self.asked = []

    def forward(self, batch, drop=None):
        self.asked.append((list(batch.text), drop))
        rows = torch.tensor([CAPTIONS.index(caption) + 1 for caption in batch.text])
        rows = rows if drop is None else torch.where(drop, 0, rows)
        return Cond(pooled=self.table(rows))


class TinyNet(nn.Module):
    """Linear, tanh, linear on everything it is given."""

    channels, image_size, token_dim, pooled_dim = SHAPE[0], SHAPE[1], 0, Words.pooled_dim

    def __init__(self, z_dim, width=16):
        super().__init__()
        self.z_dim = z_dim
        size = SHAPE[0] * SHAPE[1] * SHAPE[2]
        self.inside = nn.Linear(size + 1 + Words.pooled_dim + z_dim, width)
        self.outside = nn.Linear(width, size)

    def forward(self, x, time, cond, z=None):
        parts = [x.flatten(1), time[:, None].to(x.dtype) / 1000, cond.pooled, *([] if z is None else [z])]
        return self.outside(torch.tanh(self.inside(torch.cat(parts, dim=1)))).view_as(x)


def tiny_players(*, z_dim=2, marginal=False, schedule=None, prediction="v", heads=1, seed=0):
    """Generator and discriminator in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        process = Process(schedule or Article(4))
        generator = Generator(
            TinyNet(z_dim), process, prediction=prediction, conditioner=Words(), z_dim=z_dim
        )
        trunk = MLPCritic((SHAPE[0] * (1 if marginal else 2), *SHAPE[1:]), 16, depth=1, cond_dim=8)
        critic = Discriminator(
            trunk, process=process, cond_dim=Words.pooled_dim, features=16, heads=heads, marginal=marginal
        )
    return {"generator": generator.double(), "discriminator": critic.double()}


def tiny_batch(size, *, start=0):
    """Structured random images with captions."""
    position = torch.arange(start, start + size)
    x = 0.5 * Rng(7, position).normal(SHAPE, "x").double()
    return Batch(x, position, text=[CAPTIONS[index % len(CAPTIONS)] for index in position.tolist()])


def split(batch: Batch, parts: int) -> list[Batch]:
    """Micro-batches of equal size."""
    size = len(batch) // parts
    cuts = [slice(size * index, size * (index + 1)) for index in range(parts)]
    return [Batch(batch.x[cut], batch.position[cut], text=batch.text[cut]) for cut in cuts]


def play(objective, players, batches: Sequence[Batch], clock, *, seed=3, rate=0.05):
    """One step of the engine: [(player, gradients, logs)] of every turn, with an SGD update after each.

    The micro-batches' iterators go in lockstep; between turns there are no gradients; in a turn its player's
    alone, which are dropped at the next turn.
    """
    iterators = [objective.turns(players, batch, clock, Rng(seed, batch.position)) for batch in batches]
    played = []
    while True:
        with torch.no_grad():
            turns = [next(iterator, None) for iterator in iterators]
        if turns[0] is None:
            assert all(turn is None for turn in turns)
            return played
        name = turns[0].player
        for other, player in players.items():
            player.requires_grad_(other == name)
            player.zero_grad(set_to_none=True)
        logs = []
        for turn in turns:
            assert turn.player == name
            loss = turn.loss()
            (loss.value / len(turns)).backward()
            logs.append(loss.logs)
        assert all(p.grad is None for other in players if other != name for p in players[other].parameters())
        grads = {key: p.grad.clone() for key, p in players[name].named_parameters() if p.grad is not None}
        with torch.no_grad():
            for p in players[name].parameters():
                if p.grad is not None:
                    p -= rate * p.grad
        mean = {key: torch.stack([log[key] for log in logs]).double().mean().item() for key in logs[0]}
        played.append((name, grads, mean))


PENALTY = ("gamma", "sigma", "r1", "r2", "lazy", "center")
COURSE = ("warm", "warmup", "head_start", "warm_rate", "rate", "freeze_text")


def game(jumps, *, penalty="fd", anchor="none", weight=1.0, kappa=5.0, mismatch=0.0, captions=(), **options):
    """An adversarial objective from flat words, after a warm start where one of its words is given."""
    smooth = {name: options.pop(name) for name in PENALTY if name in options}
    course = {name: options.pop(name) for name in COURSE if name in options}
    played = Adversarial(
        jumps,
        penalty=Penalty(penalty, **smooth),
        anchor=Anchor(anchor, weight=weight, kappa=kappa),
        mismatch=Mismatch(mismatch, captions=captions),
        **options,
    )
    return warm_start(played, **course) if course else played
