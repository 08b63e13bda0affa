"""The engine: a LightningModule that plays an objective's turns and knows no method.

    for turn in objective.turns(players, batch, clock, rng):     nothing between turns has gradients
        L = turn.loss(); ∇L                                      gradients on for turn.player alone
        g ← mean over ranks, clipped                             only that player's gradients are sent
        θ ← step(θ, g, lr(images))  if ‖g‖ is finite
    θ̄ ← EMA by role;  images += batch                            one global step is one global batch

A rank's share of a batch is split into `micro_batches` pieces, each with its own iterator of turns. These
advance in lockstep and their gradients add up to one update, so memory holds one piece's graph at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.optim import Optimizer

from lmsd.checkpoints import KEY, VERSION
from lmsd.engine.buckets import Reducer
from lmsd.engine.ema import EMA
from lmsd.engine.flops import Flops, peak_of
from lmsd.engine.logging import rewind
from lmsd.engine.meter import Meter
from lmsd.engine.muon import Muon
from lmsd.engine.optim import Optimization, clip, set_rate, step
from lmsd.engine.players import Seats, net_of
from lmsd.engine.state import RunState
from lmsd.errors import UserError
from lmsd.models.generator import Generator
from lmsd.objectives.base import Objective, trained
from lmsd.ranks import shares, union, world_size
from lmsd.rng import Rng, fold
from lmsd.types import Batch, Clock, Turn


class Engine(LightningModule):
    """Plays the turns of an objective; see the module for the loop.

    players: nets by role, the whole cast of the objective; optimization: how they are updated and averaged;
    total_images: length of the run; batch_size: global; micro_batches: pieces of a rank's share of a batch;
    seed: of all noise; compile: compile the nets, not the turns; log_every: images between two lines of
    metrics; record: what a checkpoint says about its origin, plain data by name.

    Raises UserError if names or sizes do not match.
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
        self.optimizers_by_role: dict[str, Optimizer] = {}
        self._pending: list[Batch] = []
        dropouts = (m for m in self.players.modules() if isinstance(m, nn.modules.dropout._DropoutNd))
        self._dropout = any(module.p > 0 for module in dropouts)  # they draw from torch's global generator
        for player in self.players.values() if compile else ():
            net_of(player).compile()

    # -- what it is made of -----------------------------------------------------------------------------

    @property
    def roles(self) -> dict[str, nn.Module]:
        """The players by role, raw weights."""
        return dict(self.players.items())

    def average(self, role: str) -> EMA:
        """The averages of a role. Raises UserError if it has none."""
        if role not in self.ema:
            raise UserError(f"no averages of {role!r} are kept; they are kept of {', '.join(self.ema)}")
        return cast(EMA, self.ema[role])

    def _check(self) -> None:
        for name in self.objective.cast:
            if name not in self.players:
                raise UserError(f"the objective plays {name!r} and the players are {sorted(self.players)}")
        if self.lead not in self.learners:
            raise UserError(
                f"the lead, {self.lead!r}, is not among the players that learn, {list(self.learners)}"
            )
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
        """One optimizer for each player that learns, in the order of the cast."""
        self.optimizers_by_role, self.seats = {}, Seats(self.roles)  # parameters are on their device by now
        for name in self.learners:
            if not self.seats.trainable[name]:
                raise UserError(f"player {name!r} has an optimizer but no trainable parameter")
            made = self.optimizers_by_role[name] = self.optimization.makers[name](self.seats.trainable[name])
            if isinstance(made, Muon):
                made.choose(self.players[name])
        return list(self.optimizers_by_role.values())

    # -- the loop ---------------------------------------------------------------------------------------

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move a Batch and note its damaged samples; Lightning's own hook refuses frozen dataclasses."""
        if "substituted" in batch.extra:
            self.run.damaged |= {int(number) for number in batch.extra["substituted"] if number}
        return batch.to(device)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Play one global batch once the loader has delivered all of it."""
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
        self._advance(self.play(pieces))

    def play(self, pieces: Sequence[Batch]) -> set[str]:
        """Play the turns of a global batch, given as micro-batches; returns who played."""
        scripts = [
            self.objective.turns(self.roles, piece, self.clock, Rng(self.seed, piece.position))
            for piece in pieces
        ]
        played = set()
        for turns in self._rounds(scripts):
            self._play(turns)
            played.add(turns[0].player)
        return played

    def _pieces(self, batch: Batch) -> list[Batch]:
        """The micro-batches in what the loader delivered: all K of them, or some."""
        size = shares(self.batch_size, world_size(), self.micro_batches)
        if len(batch) % size or len(batch) // size + len(self._pending) > self.micro_batches:
            raise UserError(
                f"{len(batch)} images on each of {world_size()} ranks, in {self.micro_batches} micro-batches "
                f"do not make batch_size={self.batch_size}: choose a multiple of ranks x micro_batches"
            )
        return self.encoded(batch).split(len(batch) // size)

    def encoded(self, batch: Batch) -> Batch:
        """What the players diffuse of a batch: latents where the lead has a codec."""
        lead = self.players[self.lead]
        return lead.encode(batch, Rng(self.seed, batch.position)) if isinstance(lead, Generator) else batch

    def _rounds(self, scripts: Sequence[Iterator[Turn]]) -> Iterator[list[Turn]]:
        """Advance the scripts in lockstep, without gradients between turns."""
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
        if player not in self.optimizers_by_role:
            raise RuntimeError(f"a turn of {player!r}, which the objective's cast does not train")
        for name in turns[0].restart:
            self._restart(name)
        with self.seats.only(player) as parameters, torch.enable_grad():
            with self.flops.update(player):
                for turn in turns:
                    loss = turn.loss()
                    # Backward passes and updates do not belong in autocast. Lightning's caches no
                    # half-precision weights, which an update would leave out of date.
                    with (
                        torch.autocast(self.device.type, enabled=False),
                        self.reducer.sending(parameters, last=turn is turns[-1]),
                    ):
                        (loss.value / len(turns)).backward()  # type: ignore[no-untyped-call]
                    logs = {f"{player}/{name}": value for name, value in loss.logs.items()}
                    self.meter.add({f"{player}/loss": loss.value, **logs})
            with torch.autocast(self.device.type, enabled=False), torch.no_grad():
                self._update(player, parameters, self.rate() * turns[0].rate)

    def _restart(self, player: str) -> None:
        """Begin a phase with the averaged weights, if there are any, and a fresh optimizer state."""
        self.optimizers_by_role[player].state.clear()
        if player in self.ema and self.average(player).half_lives:
            averaged = self.average(player).average()
            with torch.no_grad():
                for raw, mean in zip(self.players[player].parameters(), averaged.parameters(), strict=True):
                    raw.copy_(mean)

    def _update(self, player: str, parameters: Sequence[nn.Parameter], factor: float) -> None:
        optimizer = self.optimizers_by_role[player]
        self.reducer(parameters)
        norm = clip(parameters, self.optimization.clips.get(player))
        set_rate(optimizer, factor)
        step(optimizer, norm)
        for parameter in parameters:
            parameter.grad = None
        self.meter.add({f"{player}/grad_norm": norm, f"{player}/skipped": (~norm.isfinite()).float()})
        self.run.count(player, norm)
        self.clock.count(player)

    def _advance(self, played: set[str]) -> None:
        before = self.clock.images
        self.clock.images += self.batch_size
        for role in self.ema:
            if role in played:
                self.average(role).advance(self.players[role], self.clock.images)
        # Lightning is to count one step a batch, however many optimizer steps it has.
        counter = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        counter.increment_ready()
        counter.increment_completed()
        self.trainer.datamodule.advance(self.batch_size)  # type: ignore[attr-defined]
        if self.clock.crossed(before, self.log_every) or self.clock.done:
            self._log()
        if self.clock.done:
            self.trainer.should_stop = True

    def rate(self) -> float:
        """The factor on the learning rate at the middle of the current batch."""
        return self.optimization.rate(self.clock.images + self.batch_size / 2, self.clock.total_images)

    # -- logs -------------------------------------------------------------------------------------------

    def _log(self) -> None:
        """Write a line of metrics: only here does the hot path wait for the device, to read the meter."""
        run = self.run
        run.line = self.meter.read()
        self.flops.end()
        run.read_at = self.clock.images
        if "data/substituted" in run.line:
            run.damaged = union(run.damaged)
        for name, optimizer in self.optimizers_by_role.items():
            run.line[f"{name}/lr"] = optimizer.param_groups[0]["lr"]
        counts = {f"{name}/updates": float(count) for name, count in self.clock.played.items()}
        self.write({**run.line, **counts, "updates": float(self.clock.updates)})

    def write(self, metrics: Mapping[str, float]) -> None:
        """Pass metrics to every logger, at the images seen so far."""
        for logger in self.trainer.loggers:
            logger.log_metrics(dict(metrics), step=self.clock.images)
        short = dict[str, float]()  # also without the extractor's name: val/fd, of the first that has it
        for name, value in metrics.items():
            short.setdefault(name.partition("[")[0] if name.endswith("]") else name, value)
        for name, value in {**metrics, **short}.items():
            self.trainer.callback_metrics[name] = torch.tensor(value)

    # -- states -----------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Switch gradients off: turns switch them on. Drop metrics that will be written again."""
        self.seats.switch(on=False)
        rewind(self.trainer.loggers, self.clock.images, scored=not self.run.unscored)

    def on_train_start(self) -> None:
        """Note the device, which is known by now. A run that is resumed at its end has nothing left to do."""
        self.flops = Flops(peak_of(self.device))
        if self.clock.done:
            self.trainer.should_stop = True

    def on_fit_end(self) -> None:
        """Switch gradients back on."""
        self.seats.switch(on=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name optimizers by role and add everything else but weights: tensors and plain Python only."""
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
        """The inverse of `on_save_checkpoint`; optimizers go back to where Lightning looks for them."""
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
