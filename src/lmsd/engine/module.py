"""The engine: a LightningModule that plays an objective's turns and knows no method.

    for turn in objective.turns(players, batch, clock, rng):     between turns nothing has gradients
        L = turn.loss(); ∇L                                      gradients on for turn.player alone
        g ← mean over ranks, clipped                             only that player's gradients travel
        θ ← step(θ, g, lr(images))  if ‖g‖ is finite
    θ̄ ← EMA of the generator;  images += batch                   one global step is one global batch

A rank's share of a batch is `micro_batches` pieces, each with its own iterator of turns; they are advanced in
lockstep and their gradients add up to one update, so memory holds the pieces' graphs one at a time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeAlias

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from lmsd.checkpoints import KEY, VERSION
from lmsd.engine.clock import Clock, crossed
from lmsd.engine.ema import EMA
from lmsd.engine.flops import Flops, peak_of
from lmsd.engine.meter import Meter
from lmsd.engine.optim import Decay, clip, rate, set_rate, step
from lmsd.engine.players import Reducer, Seats
from lmsd.errors import UserError, one_of
from lmsd.objectives.base import Objective, generator_of, trained
from lmsd.ranks import shares, world_size
from lmsd.rng import Rng, fold
from lmsd.types import Batch, Loss, Turn

MakeOptimizer: TypeAlias = Callable[[list[nn.Parameter]], Optimizer]


class Engine(LightningModule):
    """Plays the turns of an objective; see the module for the loop.

    players: nets by role, "generator" among them; optimizers: for each player of the objective, what makes
    its optimizer out of its parameters; total_images: to see in all; batch_size: global; micro_batches:
    pieces that a rank's share is played in; warmup_images, lr_decay: the learning rate's law; clip: largest
    gradient norm by player; ema: half-lives in images; seed: of all noise; compile: the nets, not the turns;
    log_every: images between two lines of metrics; config: YAML text for checkpoints.

    Raises UserError where names or sizes do not fit together.
    """

    def __init__(
        self,
        players: Mapping[str, nn.Module],
        objective: Objective,
        *,
        optimizers: Mapping[str, MakeOptimizer],
        total_images: int,
        batch_size: int,
        micro_batches: int = 1,
        warmup_images: int = 0,
        lr_decay: Decay = "constant",
        clip: Mapping[str, float | None] | None = None,
        ema: Sequence[int] = (),
        seed: int = 0,
        compile: bool = False,
        gradient_checkpointing: bool = False,
        log_every: int = 1_000,
        config: str = "",
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.objective, self.clock = objective, Clock(int(total_images))
        self.batch_size, self.micro_batches, self.seed = int(batch_size), int(micro_batches), int(seed)
        self.warmup_images, self.lr_decay, self.log_every = int(warmup_images), lr_decay, int(log_every)
        self.makers, self.clips, self.config = dict(optimizers), dict(clip or {}), config
        self.roles: dict[str, nn.Module] = dict(players)
        self.learners = trained(objective.cast)
        self._check()
        self.players = nn.ModuleDict(self.roles)
        self.seats, self.reducer, self.meter = Seats(self.roles), Reducer(), Meter()
        self.ema = EMA(self.generator, ema)
        self.metrics: dict[str, float] = {}  # the last line of training metrics, for the progress bar
        self.evaluation: dict[str, float] = {}  # the last scores, for the checkpoint of the same moment
        self.evaluated_at = -1  # images seen at that moment
        self.scoring = False  # whether an evaluation is at work that a signal may break off
        self.unscored = False  # whether one was, or was not begun after a signal
        self.request = 0  # what this rank wants the run to end with: an exit code, or 0 to go on
        self.stopping = False  # set by all ranks to end the run, with a checkpoint, after the batch at hand
        self.save_now = False  # set by all ranks to have a checkpoint
        self.evaluating = False  # an evaluation is at work, here or on another rank
        self.sick = False  # whether a checkpoint was refused since the state is not finite
        self.rollbacks = 0  # how often the run went back
        self.substituted = 0.0  # damaged samples so far, over all ranks
        self.read_at = 0  # images at the last line of metrics
        self.flops = Flops()
        self._streaks: dict[str, Tensor] = {}
        self._optimizers: dict[str, Optimizer] = {}
        self._pending: list[Batch] = []
        self.compiled = compile
        self.gathered: Callable[[], AbstractContextManager[None]] = nullcontext  # all weights on every rank
        self._dropout = any(_drops(module) for module in self.players.modules())
        if gradient_checkpointing:
            self._checkpoint_activations()
        for player in self.roles.values() if compile else ():
            _net(player).compile()

    # -- what it is made of -----------------------------------------------------------------------------

    @property
    def generator(self) -> nn.Module:
        """The player "generator", raw weights."""
        return self.roles["generator"]

    @property
    def discriminator(self) -> nn.Module:
        """The player "discriminator", where there is one."""
        if "discriminator" not in self.roles:
            raise UserError(f"this run has no discriminator; its players are {sorted(self.roles)}")
        return self.roles["discriminator"]

    def _check(self) -> None:
        if "generator" not in self.roles:
            raise UserError(f"players are {sorted(self.roles)}: one must be called 'generator'")
        for name in self.objective.cast:
            if name not in self.roles:
                raise UserError(f"the objective plays {name!r} and the players are {sorted(self.roles)}")
        for name in self.learners:
            if name not in self.makers:
                raise UserError(f"player {name!r} has no optimizer: add one under optimizers.{name}")
        unknown = (self.makers.keys() | self.clips.keys()) - self.roles.keys()
        if unknown:
            raise UserError(
                f"optimizers or clip name {sorted(unknown)}; the players are {sorted(self.roles)}"
            )
        for name in ("batch_size", "micro_batches", "log_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if self.clock.total_images < 1 or self.warmup_images < 0:
            raise UserError(f"images={self.clock.total_images} must be positive, warmup_images not negative")
        one_of("engine", "lr_decay", self.lr_decay, Decay)

    def _checkpoint_activations(self) -> None:
        net = _net(self.generator)
        if not hasattr(net, "enable_gradient_checkpointing"):
            raise UserError(
                f"{type(net).__name__} has no gradient checkpointing: set gradient_checkpointing=false"
            )
        net.enable_gradient_checkpointing()  # type: ignore[operator]

    def configure_optimizers(self) -> list[Optimizer]:
        """One optimizer for each player of the objective, in its order."""
        self._optimizers, self.seats = {}, Seats(self.roles)  # parameters have found their device by now
        for name in self.learners:
            if not self.seats.trainable[name]:
                raise UserError(f"player {name!r} has an optimizer and no parameter that may move")
            self._optimizers[name] = self.makers[name](self.seats.trainable[name])
        return list(self._optimizers.values())

    # -- the loop ---------------------------------------------------------------------------------------

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move a Batch; Lightning's own way refuses frozen dataclasses."""
        return batch.to(device)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Play one global batch, once the loader has given all of it."""
        self._pending += self._pieces(batch)
        if len(self._pending) < self.micro_batches:
            return
        pieces, self._pending = self._pending, []
        self.flops.begin(measure=self.clock.images == self.read_at)
        if "substituted" in batch.extra:
            shares = [piece.extra["substituted"].float().mean() for piece in pieces]
            self.meter.add({"data/substituted": torch.stack(shares).mean()})
        if self._dropout:
            torch.manual_seed(int(fold(self.seed, self.clock.images, self.global_rank).item()))
        scripts = [
            self.objective.turns(self.roles, piece, self.clock, Rng(self.seed, piece.position))
            for piece in pieces
        ]
        played = False
        for turns in self._rounds(scripts):
            self._play(turns)
            played |= turns[0].player == "generator"
        self._advance(played)

    def _pieces(self, batch: Batch) -> list[Batch]:
        """The micro-batches in what the loader gave: all K of them, or some."""
        size = shares(self.batch_size, world_size(), self.micro_batches)
        if len(batch) % size or len(batch) // size + len(self._pending) > self.micro_batches:
            raise UserError(
                f"{len(batch)} images on each of {world_size()} ranks, in {self.micro_batches} micro-batches "
                f"do not make batch_size={self.batch_size}: choose a multiple of ranks x micro_batches"
            )
        return generator_of(self.roles).encode(batch).split(len(batch) // size)

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
        if player == "generator" and self.ema.half_lives:
            pairs = zip(self.generator.parameters(), self.ema.average().parameters(), strict=True)
            with torch.no_grad():
                for raw, mean in pairs:
                    raw.copy_(mean)

    def _update(self, player: str, parameters: Sequence[nn.Parameter], factor: float) -> None:
        optimizer = self._optimizers[player]
        self.reducer(parameters)
        norm = clip(parameters, self.clips.get(player))
        set_rate(optimizer, factor)
        step(optimizer, norm)
        for parameter in parameters:
            parameter.grad = None
        self.meter.add({f"{player}/grad_norm": norm, f"{player}/skipped": (~norm.isfinite()).float()})
        streak = self._streaks.get(player, norm.new_zeros(()))
        self._streaks[player] = torch.where(norm.isfinite(), 0.0, streak + 1.0)
        self.clock.count(player)

    def streaks(self) -> dict[str, int]:
        """Updates of each player up to now that were skipped in a row. Waits for the device."""
        return {name: int(streak) for name, streak in self._streaks.items()}

    def _record(self, player: str, loss: Loss) -> None:
        values: dict[str, Tensor] = {f"{player}/loss": loss.value}
        values.update({f"{player}/{name}": value for name, value in loss.logs.items()})
        self.meter.add(values)

    def _advance(self, played: bool) -> None:
        before = self.clock.images
        self.clock.images += self.batch_size
        if played:
            self.ema.advance(self.generator, self.clock.images)
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
        middle = self.clock.images + self.batch_size / 2
        total, warmup = self.clock.total_images, self.warmup_images
        return rate(middle, total_images=total, warmup_images=warmup, decay=self.lr_decay)

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
        self.metrics = self.meter.read()
        self.flops.end()
        elapsed, self.read_at = self.clock.images - self.read_at, self.clock.images
        self.substituted += self.metrics.get("data/substituted", 0.0) * elapsed
        for name, optimizer in self._optimizers.items():
            self.metrics[f"{name}/lr"] = optimizer.param_groups[0]["lr"]
        counts = {f"{name}/updates": float(count) for name, count in self.clock.played.items()}
        self.write({**self.metrics, **counts, "updates": float(self.clock.updates)})

    def write(self, metrics: Mapping[str, float]) -> None:
        """Hand metrics to every logger, at the images seen so far."""
        for logger in self.trainer.loggers:
            logger.log_metrics(dict(metrics), step=self.clock.images)

    # -- states -----------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Gradients off for all: turns switch them on. Metrics that will be written again are dropped."""
        self.seats.switch(on=False)
        for logger in self.trainer.loggers:
            if hasattr(logger, "truncate"):
                logger.truncate(self.clock.images, scored=not self.unscored)

    def on_train_start(self) -> None:
        """The device is known by now; a run that is resumed at its end has nothing to do."""
        self.flops = Flops(peak_of(self.device))
        if self.clock.done:
            self.trainer.should_stop = True

    def on_fit_end(self) -> None:
        """Gradients as they were found."""
        self.seats.switch(on=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What is neither weights nor an optimizer: tensors and plain Python only."""
        checkpoint[KEY] = {
            "version": VERSION,
            "clock": self.clock.state_dict(),
            "objective": dict(self.objective.state_dict()),
            "meter": self.meter.state_dict(),
            "metrics": dict(self.evaluation) if self.evaluated_at == self.clock.images else {},
            "line": dict(self.metrics),
            "players": list(self.learners),
            "seed": self.seed,
            "batch_size": self.batch_size,
            "config": self.config,
            "unscored": self.unscored,
            "streaks": self.streaks(),
            "rollbacks": self.rollbacks,
            "substituted": self.substituted,
            "read_at": self.read_at,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The reverse of `on_save_checkpoint`."""
        if KEY not in checkpoint:
            raise UserError(
                "this checkpoint was not written by lmsd: use init_from= for weights from elsewhere"
            )
        own = checkpoint[KEY]
        if own["version"] != VERSION or own["players"] != list(self.learners):
            raise UserError(
                f"the checkpoint is of version {own['version']} with players {own['players']}, this run of "
                f"version {VERSION} with {list(self.learners)}: use init_from= for its weights alone"
            )
        self.clock.load_state_dict(own["clock"])
        self.objective.load_state_dict(own["objective"])
        self.meter.load_state_dict(own["meter"])
        self.evaluation, self.evaluated_at = dict(own["metrics"]), self.clock.images
        self.metrics = dict(own.get("line", {}))  # not in earlier checkpoints
        self.unscored, self.rollbacks = bool(own["unscored"]), int(own["rollbacks"])
        self.substituted, self.read_at = float(own["substituted"]), int(own["read_at"])
        streaks = own["streaks"].items()
        self._streaks = {name: torch.tensor(float(n), device=self.device) for name, n in streaks}


def _drops(module: nn.Module) -> bool:
    """Whether a module draws from torch's global generator."""
    return isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0


def _net(player: nn.Module) -> nn.Module:
    """The net inside a player (a generator's net, a discriminator's trunk), or the player itself."""
    for name in ("net", "trunk"):
        inner = getattr(player, name, None)
        if isinstance(inner, nn.Module):
            return inner
    return player
