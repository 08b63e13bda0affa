"""The engine: a LightningModule that plays an objective's turns and knows no method.

    for turn in objective.turns(players, batch, clock, rng):     between turns nothing has gradients
        L = turn.loss(); ∇L                                      gradients on for turn.player alone
        g ← mean over ranks, clipped                             only that player's gradients travel
        θ ← step(θ, g, lr(images))  if ‖g‖ is finite
    θ̄ ← EMA by role;  images += batch                            one global step is one global batch

A rank's share of a batch is `micro_batches` pieces, each with its own iterator of turns; they are advanced in
lockstep and their gradients add up to one update, so memory holds the pieces' graphs one at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from lmsd.checkpoints import KEY, VERSION
from lmsd.engine.clock import Clock, crossed
from lmsd.engine.ema import EMA
from lmsd.engine.flops import Flops, peak_of
from lmsd.engine.logging import rewind
from lmsd.engine.meter import Meter
from lmsd.engine.optim import Optimization, clip, set_rate, step
from lmsd.engine.players import Reducer, Seats, net_of
from lmsd.engine.state import RunState
from lmsd.errors import UserError
from lmsd.models.generator import Generator
from lmsd.objectives.base import Objective, trained
from lmsd.ranks import shares, union, world_size
from lmsd.rng import Rng, fold
from lmsd.types import Batch, Loss, Turn


class Engine(LightningModule):
    """Plays the turns of an objective; see the module for the loop.

    players: nets by role, all of the objective's cast; optimization: how they are updated and averaged;
    total_images: to see in all; batch_size: global; micro_batches: pieces that a rank's share is played in;
    seed: of all noise; compile: the nets, not the turns; log_every: images between two lines of metrics;
    record: what a checkpoint says of where it comes from, plain data by name.

    Raises UserError where names or sizes do not fit together.
    """

    def __init__(
        self,
        players: Mapping[str, nn.Module],
        objective: Objective,
        optimization: Optimization,
        *,
        total_images: int,
        batch_size: int,
        micro_batches: int = 1,
        seed: int = 0,
        compile: bool = False,
        log_every: int = 1_000,
        record: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.objective, self.lead, self.learners = objective, objective.lead, trained(objective.cast)
        self.optimization, self.clock = optimization, Clock(int(total_images), self.lead)
        self.batch_size, self.micro_batches, self.seed = int(batch_size), int(micro_batches), int(seed)
        self.log_every, self.record, self.compiled = int(log_every), dict(record), compile
        self.players = nn.ModuleDict(players)
        self._check()
        self.seats, self.reducer, self.meter = Seats(self.roles), Reducer(), Meter()
        averages = {self.lead: (), **optimization.averages}
        self.ema = nn.ModuleDict({role: EMA(self.players[role], spans) for role, spans in averages.items()})
        self.run, self.flops = RunState(), Flops()
        self._optimizers: dict[str, Optimizer] = {}
        self._pending: list[Batch] = []
        self._dropout = any(_drops(module) for module in self.players.modules())
        for player in self.players.values() if compile else ():
            net_of(player).compile()

    # -- what it is made of -----------------------------------------------------------------------------

    @property
    def roles(self) -> dict[str, nn.Module]:
        """The players by role, raw weights."""
        return dict(self.players.items())

    def average(self, role: str) -> EMA:
        """The averages of a role. Raises UserError for one that has none."""
        if role not in self.ema:
            raise UserError(f"no averages of {role!r} are kept; they are kept of {', '.join(self.ema)}")
        found: Any = self.ema[role]
        assert isinstance(found, EMA)
        return found

    def _check(self) -> None:
        cast, known = self.objective.cast, sorted(self.players)
        for name in cast:
            if name not in self.players:
                raise UserError(f"the objective plays {name!r} and the players are {known}")
        if self.lead not in self.learners:
            raise UserError(f"the lead, {self.lead!r}, is not among those who learn, {list(self.learners)}")
        self.optimization.check(self.players, self.learners)
        for name, value in (
            ("batch_size", self.batch_size),
            ("micro_batches", self.micro_batches),
            ("log_every", self.log_every),
            ("images", self.clock.total_images),
        ):
            if value < 1:
                raise UserError(f"{name}={value} must be at least 1")

    def configure_optimizers(self) -> list[Optimizer]:
        """One optimizer for each player of the objective, in its order."""
        self._optimizers, self.seats = {}, Seats(self.roles)  # parameters have found their device by now
        for name in self.learners:
            if not self.seats.trainable[name]:
                raise UserError(f"player {name!r} has an optimizer and no parameter that may move")
            self._optimizers[name] = self.optimization.makers[name](self.seats.trainable[name])
        return list(self._optimizers.values())

    # -- the loop ---------------------------------------------------------------------------------------

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move a Batch, its damaged samples noted; Lightning's own way refuses frozen dataclasses."""
        if "substituted" in batch.extra:
            self.run.damaged |= {int(number) for number in batch.extra["substituted"] if number}
        return batch.to(device)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Play one global batch, once the loader has given all of it."""
        self._pending += self._pieces(batch)
        if len(self._pending) < self.micro_batches:
            return
        pieces, self._pending = self._pending, []
        self.flops.begin(measure=self.clock.images == self.run.read_at)
        if "substituted" in batch.extra:
            shares = [(piece.extra["substituted"] > 0).float().mean() for piece in pieces]
            self.meter.add({"data/substituted": torch.stack(shares).mean()})
        if self._dropout:
            torch.manual_seed(int(fold(self.seed, self.clock.images, self.global_rank).item()))
        scripts = [
            self.objective.turns(self.roles, piece, self.clock, Rng(self.seed, piece.position))
            for piece in pieces
        ]
        played = set()
        for turns in self._rounds(scripts):
            self._play(turns)
            played.add(turns[0].player)
        self._advance(played)

    def _pieces(self, batch: Batch) -> list[Batch]:
        """The micro-batches in what the loader gave: all K of them, or some."""
        size = shares(self.batch_size, world_size(), self.micro_batches)
        if len(batch) % size or len(batch) // size + len(self._pending) > self.micro_batches:
            raise UserError(
                f"{len(batch)} images on each of {world_size()} ranks, in {self.micro_batches} micro-batches "
                f"do not make batch_size={self.batch_size}: choose a multiple of ranks x micro_batches"
            )
        lead = self.players[self.lead]
        encoded = lead.encode(batch) if isinstance(lead, Generator) else batch
        return encoded.split(len(batch) // size)

    def _rounds(self, scripts: Sequence[Iterator[Turn]]) -> Iterator[list[Turn]]:
        """Advance the scripts in lockstep; what they do between turns has no gradients."""
        while True:
            with torch.no_grad():
                turns = [next(script, None) for script in scripts]
            found = [turn for turn in turns if turn is not None]
            if not found:
                return
            if len({turn.player if turn is not None else None for turn in turns}) > 1:
                raise RuntimeError(
                    "micro-batches yield different turns: decide by the clock, never by the data"
                )
            yield found

    def _play(self, turns: Sequence[Turn]) -> None:
        player = turns[0].player
        if player not in self._optimizers:
            raise RuntimeError(f"a turn of {player!r}, whom the objective does not list among its players")
        for name in turns[0].restart:
            self._restart(name)
        with self.seats.only(player) as parameters, torch.enable_grad():
            with self.flops.update(player):
                for turn in turns:
                    loss = turn.loss()
                    with self._full_precision():
                        (loss.value / len(turns)).backward()  # type: ignore[no-untyped-call]
                    self._record(player, loss)
            with self._full_precision(), torch.no_grad():
                self._update(player, parameters, self.rate() * turns[0].rate)

    def _restart(self, player: str) -> None:
        """Begin a phase: from the averaged weights, if there are any, with a fresh optimizer state."""
        self._optimizers[player].state.clear()
        if player in self.ema and self.average(player).half_lives:
            averaged = self.average(player).average()
            pairs = zip(self.players[player].parameters(), averaged.parameters(), strict=True)
            with torch.no_grad():
                for raw, mean in pairs:
                    raw.copy_(mean)

    def _update(self, player: str, parameters: Sequence[nn.Parameter], factor: float) -> None:
        optimizer = self._optimizers[player]
        self.reducer(parameters)
        norm = clip(parameters, self.optimization.clips.get(player))
        set_rate(optimizer, factor)
        step(optimizer, norm)
        for parameter in parameters:
            parameter.grad = None
        self.meter.add({f"{player}/grad_norm": norm, f"{player}/skipped": (~norm.isfinite()).float()})
        self.run.count(player, norm)
        self.clock.count(player)

    def _record(self, player: str, loss: Loss) -> None:
        values: dict[str, Tensor] = {f"{player}/loss": loss.value}
        values.update({f"{player}/{name}": value for name, value in loss.logs.items()})
        self.meter.add(values)

    def _advance(self, played: set[str]) -> None:
        before = self.clock.images
        self.clock.images += self.batch_size
        for role in self.ema:
            if role in played:
                self.average(role).advance(self.players[role], self.clock.images)
        # Lightning counts one step for a batch, whatever the number of optimizer steps in it.
        counter = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        counter.increment_ready()
        counter.increment_completed()
        self.trainer.datamodule.advance(self.batch_size)  # type: ignore[attr-defined]
        if crossed(before, self.clock.images, self.log_every) or self.clock.done:
            self._log()
        if self.clock.done:
            self.trainer.should_stop = True

    def rate(self) -> float:
        """The factor on the learning rate at the middle of the batch at hand."""
        return self.optimization.rate(self.clock.images + self.batch_size / 2, self.clock.total_images)

    @contextmanager
    def _full_precision(self) -> Iterator[None]:
        """Backward passes and updates outside autocast, as its authors ask.

        Lightning's autocast caches no half-precision weights, which an update would leave out of date.
        """
        if not torch.is_autocast_enabled(self.device.type):
            yield
            return
        with torch.autocast(self.device.type, enabled=False):
            yield

    # -- logs -------------------------------------------------------------------------------------------

    def _log(self) -> None:
        """Read the meter, the only time that the hot path waits for the device, and write one line."""
        run = self.run
        run.line = self.meter.read()
        self.flops.end()
        run.read_at = self.clock.images
        if "data/substituted" in run.line:
            run.damaged = union(run.damaged)
        for name, optimizer in self._optimizers.items():
            run.line[f"{name}/lr"] = optimizer.param_groups[0]["lr"]
        counts = {f"{name}/updates": float(count) for name, count in self.clock.played.items()}
        self.write({**run.line, **counts, "updates": float(self.clock.updates)})

    def write(self, metrics: Mapping[str, float]) -> None:
        """Hand metrics to every logger, at the images seen so far."""
        for logger in self.trainer.loggers:
            logger.log_metrics(dict(metrics), step=self.clock.images)
        short = dict[str, float]()  # also without the extractor's name: val/fd, of the first that has it
        for name, value in metrics.items():
            short.setdefault(name.partition("[")[0] if name.endswith("]") else name, value)
        for name, value in {**metrics, **short}.items():
            self.trainer.callback_metrics[name] = torch.tensor(value)

    # -- states -----------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Gradients off for all: turns switch them on. Metrics that will be written again are dropped."""
        self.seats.switch(on=False)
        rewind(self.trainer.loggers, self.clock.images, scored=not self.run.unscored)

    def on_train_start(self) -> None:
        """The device is known by now; a run that is resumed at its end has nothing to do."""
        self.flops = Flops(peak_of(self.device))
        if self.clock.done:
            self.trainer.should_stop = True

    def on_fit_end(self) -> None:
        """Gradients as they were found."""
        self.seats.switch(on=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What is neither weights nor an optimizer, and optimizers by role: tensors and plain Python only."""
        states = checkpoint.pop("optimizer_states")
        checkpoint["optimizers"] = dict(zip(self.learners, states, strict=True))
        checkpoint[KEY] = {
            "version": VERSION,
            "clock": self.clock.state_dict(),
            "objective": dict(self.objective.state_dict()),
            "meter": self.meter.state_dict(),
            "players": list(self.learners),
            "seed": self.seed,
            "batch_size": self.batch_size,
            **self.record,
            **self.run.state_dict(self.clock.images),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The reverse of `on_save_checkpoint`; optimizers go back to where Lightning looks for them."""
        if KEY not in checkpoint:
            raise UserError(
                "this checkpoint was not written by lmsd: use init_from= for weights from elsewhere"
            )
        own = checkpoint[KEY]
        if set(own["players"]) != set(self.learners):
            raise UserError(
                f"the checkpoint's players are {own['players']} and this run's {list(self.learners)}: use "
                "init_from= for its weights alone"
            )
        checkpoint["optimizer_states"] = [checkpoint["optimizers"][name] for name in self.learners]
        self.clock.load_state_dict(own["clock"])
        self.objective.load_state_dict(own["objective"])
        self.meter.load_state_dict(own["meter"])
        self.run.load_state_dict(own, self.clock.images, self.device)


def _drops(module: nn.Module) -> bool:
    """Whether a module draws from torch's global generator."""
    return isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
