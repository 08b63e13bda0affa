"""A smaller net learns what a larger one of the same kind estimates, beside a game or alone.

    L_G = L_game + λ E_{t, ε} ‖f(x_t, t, c) − f_T(x_t, t, c)‖²/D      x_t = α x₀ + σ ε, f as the net predicts

f_T is the teacher, as it is sampled, of the same prediction and latent width; both see the same x_t, caption,
drop and z (Hinton et al. 2015, for regression). Discriminators play the game as they would without it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lmsd.errors import Measure, Share, UserError
from lmsd.models.generator import Generator
from lmsd.objectives.base import (
    Cast,
    Facts,
    Objective,
    Part,
    caption_drop,
    generator_of,
    latent,
    mean_square,
    standard_normal,
)
from lmsd.process.times import Times
from lmsd.rng import Rng
from lmsd.types import Batch, Clock, Loss, Players, Turn


class Imitation(Objective):
    """A generator that imitates a teacher, and plays a game where there is one.

    teacher: a trained generator, which stays as it is, in no checkpoint; times: law (rng, process) → t [B];
    game: an objective that trains "generator"; weight: λ; caption_dropout: share of captions dropped in the
    imitation, [0, 1]. Logs "imitation", the distance alone.
    """

    def __init__(
        self,
        teacher: Generator,
        times: Times,
        *,
        game: Objective | None = None,
        weight: Measure = 1.0,
        caption_dropout: Share = 0.1,
    ) -> None:
        self.teacher = teacher.requires_grad_(False).eval()
        self.times, self.game, self.weight, self.caption_dropout = times, game, weight, caption_dropout

    @property
    def cast(self) -> Cast:
        """The game's, or the generator alone."""
        return {"generator": Part()} if self.game is None else self.game.cast

    def prepare(self, facts: Facts) -> None:
        """Refuse a teacher whose estimates are of another kind."""
        student = generator_of(facts.players)
        for name, ours, theirs in (
            ("prediction", student.prediction, self.teacher.prediction),
            ("precondition", student.precondition, self.teacher.precondition),
            ("z_dim", student.z_dim, self.teacher.z_dim),
            ("shape", student.shape, self.teacher.shape),
        ):
            if ours != theirs:
                raise UserError(
                    f"imitation: the teacher's {name} is {theirs}, and the student's {ours}: take equal ones"
                )
        if self.game is not None:
            self.game.prepare(facts)

    def turns(self, players: Players, batch: Batch, clock: Clock, rng: Rng) -> Iterator[Turn]:
        """The game's turns, with the imitation in those of the generator."""
        imitation = partial(self.loss, generator_of(players), batch, rng)
        if self.game is None:
            yield Turn("generator", imitation)
            return
        for turn in self.game.turns(players, batch, clock, rng):
            joint = turn.player == "generator"
            yield replace(turn, loss=partial(self._both, turn, imitation)) if joint else turn

    @staticmethod
    def _both(turn: Turn, imitation: partial[Loss]) -> Loss:
        game, other = turn.loss(), imitation()
        return Loss(game.value + other.value, {**game.logs, **other.logs})

    def loss(self, generator: Generator, batch: Batch, rng: Rng) -> Loss:
        """λ times the mean distance of a batch."""
        if self.teacher.device != batch.x.device:
            self.teacher.to(batch.x.device)
        t = self.times(rng, generator.process)
        x_t = generator.process.noise(batch.x, t, standard_normal(rng, batch.x, "imitated"))
        drop = caption_drop(rng, self.caption_dropout)
        z = latent(generator, rng, batch.x, tag="z of imitation")
        with torch.no_grad():
            wanted = self.teacher(x_t, t, self.teacher.condition(batch, drop), z, output="native")
        error = mean_square(generator(x_t, t, generator.condition(batch, drop), z, output="native") - wanted)
        value = error.mean()
        return Loss(self.weight * value, {"imitation": value.detach()})

    def probe(self, players: Players, batch: Batch, rng: Rng) -> Mapping[str, Tensor]:
        """The game's health."""
        return {} if self.game is None else self.game.probe(players, batch, rng)

    def collapsed(self, metrics: Mapping[str, float]) -> str | None:
        """What the game says."""
        return None if self.game is None else self.game.collapsed(metrics)

    def state_dict(self) -> Mapping[str, Any]:
        """The game's."""
        return {} if self.game is None else self.game.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        if self.game is not None:
            self.game.load_state_dict(state)
