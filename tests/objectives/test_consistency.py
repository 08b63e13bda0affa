"""A new method is one file: consistency training (Song et al. 2023) as a script of turns.

L = E ‖G(x_t, t) − sg G(x_s, s)‖²,    x_t = α_t x₀ + σ_t ε, x_s = α_s x₀ + σ_s ε with the same ε,  G(x, 0) = x
"""

from functools import partial

import pytest
import torch
from tiny_players import TinyClock, TinyNet, Words, tiny_batch

from lmsd.models.generator import Generator
from lmsd.objectives.base import Objective, generator_of, mean_square, standard_normal
from lmsd.process.gaussian import Process
from lmsd.process.schedules import Flow
from lmsd.process.times import Jumps
from lmsd.rng import Rng
from lmsd.types import Batch, Loss, Turn


class Consistency(Objective):
    def __init__(self, jumps):
        self.jumps = jumps

    def turns(self, players, batch, clock, rng):
        generator = generator_of(players)
        process = generator.process
        s, t = self.jumps(rng, process)
        eps = standard_normal(rng, batch.x, "eps")
        x_s, x_t = (process.noise(batch.x, time, eps) for time in (s, t))
        teacher = generator(x_s, s, generator.condition(batch))
        target = torch.where((s == process.schedule.t_clean)[:, None, None, None], batch.x, teacher)
        yield Turn("generator", partial(self.loss, generator, batch, x_t, t, target))

    def loss(self, generator, batch, x_t, t, target):
        value = mean_square(generator(x_t, t, generator.condition(batch)) - target).mean()
        return Loss(value, {"consistency": value.detach()})


def test_a_method_is_one_file_and_trains():
    """Captions a and b have images of their own; one step from noise must find the image asked for."""
    torch.manual_seed(0)
    generator = Generator(TinyNet(0, 64), Process(Flow()), prediction="x0", conditioner=Words())
    objective: Objective = Consistency(Jumps(4))
    optimizer = torch.optim.Adam(generator.parameters(), lr=5e-3)
    image = tiny_batch(2).x.float()

    def batch_at(step):
        position = torch.arange(64 * step, 64 * (step + 1))
        noise = 0.05 * Rng(5, position).normal((2, 3, 3), "data")
        text = ["a cat" if index % 2 == 0 else "a dog" for index in range(64)]
        return Batch(image[position % 2] + noise, position, text)

    def one_step_error():
        batch = batch_at(10_000)
        with torch.no_grad():
            x_t = Rng(9, batch.position).normal((2, 3, 3), "x_T")
            x_0 = generator(x_t, torch.ones(64), generator.condition(batch))
        return mean_square(x_0 - image[batch.position % 2]).mean().item()

    before = one_step_error()
    for step in range(200):
        batch = batch_at(step)
        with torch.no_grad():
            turns = list(
                objective.turns({"generator": generator}, batch, TinyClock(), Rng(1, batch.position))
            )
        for turn in turns:
            optimizer.zero_grad()
            turn.loss().value.backward()
            optimizer.step()
    assert before == pytest.approx(image.square().mean().item(), rel=0.5)
    assert one_step_error() < 0.05 * before
