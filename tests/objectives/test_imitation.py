"""Imitation: zero for equal nets, the mean square of what differs, in turns of the generator alone."""

from typing import Any

import pytest
import torch
from torch import nn

from lmsd.errors import UserError
from lmsd.models.conditioner import LabelConditioner
from lmsd.models.generator import Generator
from lmsd.objectives import Adversarial
from lmsd.objectives.base import Facts, Objective
from lmsd.objectives.imitation import Imitation
from lmsd.objectives.phases import Phase, Phases
from lmsd.process.gaussian import Process
from lmsd.process.schedules import Article
from lmsd.process.times import Grid, Jumps
from lmsd.rng import Rng
from lmsd.types import Batch, Clock, Cond, Loss, Turn

SHAPE = (1, 4, 4)


class Constant(nn.Module):
    """Estimates one number, whatever it sees."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.channels, self.image_size = 1, 4
        self.token_dim, self.pooled_dim, self.z_dim, self.image_dim = 0, 4, 0, 0
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x: torch.Tensor, time: torch.Tensor, cond: Cond, z: Any = None) -> torch.Tensor:
        return self.value.expand_as(x)


def made(value: float, **options: Any) -> Generator:
    return Generator(
        Constant(value), Process(Article(4)), conditioner=LabelConditioner(3, 4), prediction="x0", **options
    )


def batch() -> Batch:
    return Batch(torch.randn(6, *SHAPE), torch.arange(6), label=torch.arange(6) % 3)


def test_the_loss_is_the_mean_square_of_what_differs() -> None:
    """f = 0.5 and f_T = 0.2: λ · 0.09 and its slope 2 λ · 0.3, at the student alone."""
    teacher, student = made(0.2), made(0.5)
    objective = Imitation(teacher, Grid(4), weight=3.0)
    (turn,) = objective.turns(
        {"generator": student}, batch(), Clock(100, "generator"), Rng(0, torch.arange(6))
    )
    loss = turn.loss()
    assert float(loss.value) == pytest.approx(3 * 0.09, rel=1e-5)
    assert float(loss.logs["imitation"]) == pytest.approx(0.09, rel=1e-5)
    loss.value.backward()
    net: Any = student.net
    assert float(net.value.grad) == pytest.approx(3 * 2 * 0.3, rel=1e-5)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_nothing_is_lost_between_equals() -> None:
    (turn,) = Imitation(made(0.2), Grid(4)).turns(
        {"generator": made(0.2)}, batch(), Clock(100, "generator"), Rng(0, torch.arange(6))
    )
    assert float(turn.loss().value) == 0.0


class Game(Objective):
    """Two players, each with a loss that says who it is."""

    def turns(self, players: Any, batch: Batch, clock: Clock, rng: Rng) -> Any:
        for number, player in enumerate(("discriminator", "generator")):
            value = torch.tensor(10.0 * (number + 1))
            yield Turn(player, lambda value=value: Loss(value, {"game": value}))


def test_the_rates_of_a_game_stay() -> None:
    objective = Imitation(made(0.2), Grid(4), game=Phases([Phase(Game(), rate=0.25)]))
    turns = objective.turns(
        {"generator": made(0.5)}, batch(), Clock(100, "generator"), Rng(0, torch.arange(6))
    )
    assert [turn.rate for turn in turns] == [0.25, 0.25]


def test_in_a_game_it_stands_in_the_generators_turns_alone() -> None:
    objective = Imitation(made(0.2), Grid(4), game=Game())
    turns = list(
        objective.turns({"generator": made(0.5)}, batch(), Clock(100, "generator"), Rng(0, torch.arange(6)))
    )
    assert [turn.player for turn in turns] == ["discriminator", "generator"]
    first, second = (turn.loss() for turn in turns)
    assert float(first.value) == 10.0
    assert float(second.value) == pytest.approx(20.09, rel=1e-5)
    assert set(second.logs) == {"game", "imitation"}


def test_the_cast_is_the_games() -> None:
    game = Adversarial(Jumps(4))
    assert Imitation(made(0.2), Grid(4), game=game).cast == game.cast
    assert list(Imitation(made(0.2), Grid(4)).cast) == ["generator"]


def test_a_teacher_of_another_prediction_is_refused() -> None:
    student = Generator(
        Constant(0.0), Process(Article(4)), conditioner=LabelConditioner(3, 4), prediction="v"
    )
    with pytest.raises(UserError, match="the teacher's prediction is x0, and the student's v"):
        Imitation(made(0.2), Grid(4)).prepare(Facts([], lambda: None, {"generator": student}))
