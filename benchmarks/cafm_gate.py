"""Does the adversary on the velocity see the error that is there, and does its gradient pay? CAFM's gate.

    python benchmarks/cafm_gate.py            both parts, five seeds
    python benchmarks/cafm_gate.py 1          one seed

25 Gaussians in the plane (a grid of variance 1, deviation .05), whose E[v|x_t] and Cov[v|x_t] are exact. A
small net learns the flow for 6,000 updates of 256. Then, in each of five bins of t from 0.05 to 0.95:

    free        2 − E[2/(1 + δ/2)]: what an adversary reaches whose slope and rate are free at every (x, t)
    potential   the same of one potential D(x, t), trained without noise, on the exact Δ and Σ: E L_D is
                (a + g·Δ − 1)² + gᵀ Σ g + (a + 1)² with g = ∇D and a = g·u + ∂_t D; with random waves of x and
                waves of t as inputs, and bins weighted by 1/free, so that none is neglected
    D           what `objective=cafm` trains, on draws of the data, alone, for every count of updates

all on held-out draws. The gate asks D for half of free in every bin. Then CAFM (D alone, then 16 to 1) and
flow matching continue from the same net for the same CPU seconds; sliced W₁ of 20,000 samples at 32 Euler
steps. Results go to benchmarks/results/cafm_gate.json.
"""

import copy
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student
from torch import Tensor, nn

from lmsd.models.backbones import MLPBackbone
from lmsd.models.discriminator import Discriminator
from lmsd.models.generator import Generator
from lmsd.nets.critics import MLPCritic
from lmsd.objectives import CAFM, Denoising
from lmsd.process import Flow, Process, Uniform
from lmsd.rng import Rng
from lmsd.sampling import Settings, Tau, sample
from lmsd.types import Batch, Clock, Cond, Sizes

HERE = Path(__file__).resolve().parent
DEVIATION, SIZE, WARM = 0.05, 256, 6_000
MODES = torch.cartesian_prod(*[torch.arange(-2.0, 3.0)] * 2) / math.sqrt(2)
BINS, LOW, HIGH = 5, 0.05, 0.95
ALONE = (500, 2_000, 4_000)
"""D's updates, alone, after which it is looked at."""
GAME = 1_600
"""D's further updates in the game, 16 to one of G."""
RATES = {"generator": 1e-4, "discriminator": 1e-3}
WIDTH, DEPTH, EXACT = 64, 2, 2_000
BOUNDED = 1
"""Seeds whose best potential is looked for."""


def data(start: int, count: int = SIZE) -> Batch:
    """Draws by position."""
    position = torch.arange(start, start + count)
    rng = Rng(7, position)
    x = MODES[rng.integer(0, 25, (), "mode")] + DEVIATION * rng.normal((2,), "x")
    return Batch(x[:, :, None, None], position)


def exact(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """E[v|x_t] [n,2] and Cov[v|x_t] [n,2,2], float64."""
    x, t, modes = x.double(), t.double(), MODES.double()
    alpha = (1 - t)[:, None]
    spread = (alpha[:, 0] * DEVIATION).square() + t.square()
    apart = x[:, None] - alpha[:, :, None] * modes
    weight = torch.softmax(-apart.square().sum(2) / (2 * spread[:, None]), 1)
    means = modes + (alpha[:, 0] * DEVIATION**2 / spread)[:, None, None] * apart
    mean = (weight[:, :, None] * means).sum(1)
    around = means - mean[:, None]
    cov = torch.einsum("nk,nki,nkj->nij", weight, around, around)
    cov = cov + (DEVIATION**2 * t.square() / spread)[:, None, None] * torch.eye(2).double()
    return (x - mean) / t[:, None], cov / t.square()[:, None, None]


def generator() -> Generator:
    """The flow's net."""
    net = MLPBackbone(Sizes(2, 1), width=48, depth=2, time_dim=32)
    return Generator(net, Process(Flow()), prediction="velocity")


def critic(width: int = WIDTH, depth: int = DEPTH) -> Discriminator:
    """The potential."""
    trunk = MLPCritic((2, 1, 1), width, depth=depth, time_dim=32, cond_dim=8)
    return Discriminator(trunk, process=Process(Flow()), cond_dim=0, marginal=True, smooth=True)


def adam(net: nn.Module, rate: float, *, momentum: float = 0.0) -> torch.optim.Adam:
    return torch.optim.Adam(net.parameters(), rate, betas=(momentum, 0.95))


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def matched(net: Generator, first: int, updates: int, rate: float) -> int:
    """Flow matching for so many updates with a rate that falls to 0; returns the next position."""
    objective, optimizer = Denoising(Uniform(), caption_dropout=0.0), adam(net, rate, momentum=0.9)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    for number in range(updates):
        batch = data(first + number * SIZE)
        step(optimizer, objective.loss(net, batch, Rng(1, batch.position)).value)
        decay.step()
    return first + updates * SIZE


# -- how much there is to see --------------------------------------------------------------------------------


class Drawn:
    """Held-out or fresh (x_t, t) with the net's velocity u, Δ and Σ."""

    def __init__(self, net: Generator, start: int, count: int) -> None:
        batch = data(start, count)
        rng = Rng(2, batch.position)
        self.t = LOW + (HIGH - LOW) * rng.uniform((), "t")
        self.eps, self.batch = rng.normal((2, 1, 1), "eps"), batch
        x = net.process.noise(batch.x, self.t, self.eps)
        with torch.no_grad():
            u = net(x, self.t, Cond(), output="native").flatten(1)
        self.x, self.u = x.flatten(1), u
        mean, cov = exact(self.x, self.t)
        self.delta, self.cov = (mean - u).float(), cov.float()
        self.bin = ((self.t - LOW) / (HIGH - LOW) * BINS).long().clamp(max=BINS - 1)
        solved = torch.linalg.solve(cov, (mean - u)[:, :, None])[:, :, 0]
        delta = ((mean - u) * solved).sum(1)
        self.free = 2 - 2 / (1 + delta / 2)

    def by_bin(self, value: Tensor) -> list[float]:
        """The mean in every bin."""
        return [float(value[self.bin == number].mean()) for number in range(BINS)]


class Rich(nn.Module):
    """A potential that sees 32 random waves of x and 4 of t beside x."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.waves = 3 * torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
        sizes = [2 + 2 * 4 + 2 * 32, width, width, width]
        layers = [each for one, other in pairwise(sizes) for each in (nn.Linear(one, other), nn.SiLU())]
        self.net = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, x: Tensor, x_t: None, s: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """D(x, t), [n,1]."""
        x = x.flatten(1)
        phase = torch.cat([t[:, None] * torch.arange(1, 5), x @ self.waves], 1)
        return self.net(torch.cat([x, phase.cos(), phase.sin()], 1))  # type: ignore[no-any-return]


def without_noise(potential: nn.Module, drawn: Drawn) -> Tensor:
    """E[L_D | x_t] of a potential by its exact derivatives, [n]."""
    x, t = drawn.x.clone().requires_grad_(), drawn.t.clone().requires_grad_()
    with torch.enable_grad():
        value = potential(x[:, :, None, None], None, t, t, Cond()).sum()
        g, rate = torch.autograd.grad(value, (x, t), create_graph=True)
    a = (g * drawn.u).sum(1) + rate
    seen = a + (g * drawn.delta).sum(1)
    return (seen - 1).square() + (a + 1).square() + torch.einsum("ni,nij,nj->n", g, drawn.cov, g)


def best_potential(net: Generator, held: Drawn, first: int) -> list[float]:
    """2 − L_D in every bin, of the potential that `EXACT` updates on exact moments find."""
    torch.manual_seed(0)
    found, weight = Rich(), 1 / torch.tensor(held.by_bin(held.free))
    optimizer = adam(found, 2e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EXACT)
    for number in range(EXACT):
        drawn = Drawn(net, first + 1_024 * number, 1_024)
        step(optimizer, (weight[drawn.bin] / weight.mean() * without_noise(found, drawn)).mean())
        decay.step()
    return held.by_bin(2 - without_noise(found, held).detach())


# -- what is trained -----------------------------------------------------------------------------------------


def seen_by(objective: CAFM, potential: Discriminator, net: Generator, held: Drawn) -> list[float]:
    """2 − L_D in every bin on held-out draws, as the objective measures it."""
    x = held.x[:, :, None, None]
    with torch.no_grad():
        line = objective._line(net, x, held.t, Cond(), None)
        real, fake = objective.slopes(potential, [(held.batch.x, held.eps), line], held.t, Cond())
    return held.by_bin(2 - (real - 1).square() - (fake + 1).square())


def game(
    objective: CAFM,
    players: dict[str, nn.Module],
    clock: Clock,
    optimizers: dict[str, torch.optim.Adam],
    first: int,
    updates: int,
) -> None:
    """So many updates of D, and those of G that they bring."""
    for number in range(updates):
        batch = data(first + number * SIZE)
        for turn in objective.turns(players, batch, clock, Rng(3, batch.position)):
            for name, player in players.items():
                player.requires_grad_(name == turn.player)
            step(optimizers[turn.player], turn.loss().value)
            clock.count(turn.player)


def sliced(net: Generator, seed: int, count: int = 20_000) -> float:
    """Sliced W₁ to fresh data, 64 directions, 32 Euler steps."""
    real = data(10**9 + seed * count, count)
    made = sample(
        net,
        Cond(),
        sampler=Tau(0.0),
        settings=Settings(32, bound=None),
        rng=Rng(5, real.position),
        shape=(2, 1, 1),
    )
    angle = torch.linspace(0, math.pi, 65)[:-1]
    u = torch.stack([angle.cos(), angle.sin()])
    both = [(x.flatten(1) @ u).sort(0).values for x in (real.x, made)]
    return float((both[0] - both[1]).abs().mean())


def timed(work: Callable[[], Any]) -> float:
    """CPU seconds."""
    before = time.process_time()
    work()
    return time.process_time() - before


def course(seed: int) -> dict[str, Any]:
    """One seed of both parts."""
    torch.manual_seed(seed)
    base, first = generator(), seed * 10**8
    first = matched(base, first, WARM, 1e-3)
    held = Drawn(base, 2 * 10**9 + seed * 10**7, 100_000)
    row: dict[str, Any] = {"seed": seed, "free": held.by_bin(held.free), "start": sliced(base, seed)}
    if seed < BOUNDED:
        row["potential"] = best_potential(base, held, 3 * 10**9)
    net, potential = copy.deepcopy(base), critic()
    players: dict[str, nn.Module] = {"generator": net, "discriminator": potential}
    optimizers = {name: adam(player, RATES[name]) for name, player in players.items()}
    objective, clock = CAFM(Uniform(), alone=ALONE[-1], caption_dropout=0.0), Clock(1, "generator")
    row["alone"], seconds, played = {}, 0.0, 0
    play = partial(game, objective, players, clock, optimizers)
    for count in (*ALONE, ALONE[-1] + GAME):
        seconds += timed(partial(play, first + played * SIZE, count - played))
        played = count
        if count in ALONE:
            row["alone"][count] = seen_by(objective, potential, net, held)
    row |= {"seconds": seconds, "cafm": sliced(net, seed), "updates": clock.updates}
    other, taken = copy.deepcopy(base).requires_grad_(True), 0.0
    pilot = timed(partial(matched, copy.deepcopy(other), first, 200, 1e-3)) / 200
    updates = round(seconds / pilot)
    taken = timed(partial(matched, other, first, updates, 1e-3))
    return row | {"flow": sliced(other, seed), "flow_seconds": taken, "flow_updates": updates}


def main(arguments: list[str]) -> int:
    """Every seed; exit code 1 where the gate does not open."""
    torch.set_num_threads(1)
    path = HERE / "results" / "cafm_gate.json"
    rows = json.loads(path.read_text())["rows"] if path.is_file() else []
    for seed in range(len(rows), int(arguments[0]) if arguments else 5):  # a later run continues the record
        rows.append(json.loads(json.dumps(course(seed))))
        print(json.dumps(rows[-1]), flush=True)
        record = {"updates": WARM, "held_out": 100_000, "rows": rows}
        path.write_text(json.dumps(record, indent=1) + "\n")
    text, opened = table(rows)
    print(text)
    return 0 if opened else 1


def table(rows: Sequence[dict[str, Any]]) -> tuple[str, bool]:
    """Both parts in Markdown, and whether the gate opens."""
    heads = [f"{LOW + (HIGH - LOW) * number / BINS:.2f}" for number in range(BINS + 1)]
    bins = [f"{one} to {other}" for one, other in pairwise(heads)]
    lines = ["| 2 − L_D | " + " | ".join(f"t {each}" for each in bins) + " |", "|---" * (BINS + 1) + "|"]
    last = max(rows[0]["alone"], key=int)

    def mean(name: str, count: Any = None) -> list[float]:
        found = [row[name] if count is None else row[name][count] for row in rows if name in row]
        return [statistics.fmean(column) for column in zip(*found, strict=True)]

    free = mean("free")
    lines.append("| free | " + " | ".join(f"{value:.4f}" for value in free) + " |")
    named = [("potential", mean("potential"))] if any("potential" in row for row in rows) else []
    named += [(f"D, {count:,} updates", mean("alone", count)) for count in rows[0]["alone"]]
    for name, values in named:
        shares = " | ".join(f"{100 * value / most:.0f} %" for value, most in zip(values, free, strict=True))
        lines.append(f"| {name}, of free | {shares} |")
    sees = all(
        value >= 0.5 * most
        for row in rows
        for value, most in zip(row["alone"][last], row["free"], strict=True)
    )
    gain = [row["cafm"] - row["flow"] for row in rows]
    middle, half = statistics.fmean(gain), math.nan
    if len(gain) > 1:
        half = student.ppf(0.975, len(gain) - 1) * statistics.stdev(gain) / math.sqrt(len(gain))
    starts, ours, theirs = (statistics.fmean(row[name] for row in rows) for name in ("start", "cafm", "flow"))
    lines += [
        "",
        f"sliced W₁: {starts:.4f} at the start, CAFM {ours:.4f}, flow matching continued {theirs:.4f}; "
        f"difference {middle:+.4f} [{middle - half:+.4f}, {middle + half:+.4f}], {len(gain)} seeds",
    ]
    return "\n".join(lines), sees and middle + half < 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
