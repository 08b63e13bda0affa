"""Divergence: a run that has diverged returns to an earlier checkpoint and continues with later data.

    diverged     a player's last n updates were all skipped because ‖g‖ was not finite; or the state is not
                 finite; or the objective has called the game useless in the last m lines of metrics; or a
                 player that plays has kept its weights, to the last bit, for as long
    rolled back  weights, averages, optimizers, clock, objective and callbacks of the newest checkpoint from
                 before that
    continued    the data stream stays where it is, past what may have been the cause

The numbers are checked when metrics are read, so the hot path never waits for the device. By then gradients
and metrics are reduced, so all ranks decide alike.
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from lmsd.checkpoints import intact, manifests, read, set_aside
from lmsd.engine.callbacks import Checkpoint, engine_of, not_finite, save_now, writer
from lmsd.engine.logging import rewind
from lmsd.engine.module import Engine
from lmsd.engine.parts import all_of
from lmsd.errors import Amount, Count, Share, UserError
from lmsd.ranks import world_size

CALMER = "lower the learning rates (optim.*.lr), clip gradients (optim.clip.*)"
ALLOWED = "lower the learning rate of the player that wins (optim.*.lr), set rollback.collapsed=0 to allow it"
UNMOVED = "look at its learning rate (optim.*.lr), set rollback.collapsed=0 to allow it"
"""The ways out of what is not finite, of a collapse, and of a player that does not move."""

NOTED = 3
"""Consecutive lines of metrics after which a useless game is reported."""


class Guard(Callback):
    """Rolls a diverged run back to an earlier checkpoint; the run continues with later data.

    skipped: consecutive updates of a player with a gradient that is not finite; collapsed: consecutive lines
    of metrics of a collapsed game (`Objective.collapsed`), 0 to allow it; at_most: rollbacks in all, resumed
    runs included, before the run stops; max_bad: share of damaged samples above which it stops, after a
    checkpoint; samples: size of the training set, if known, of which one may always be damaged; stop:
    none may be (data.train.on_error=stop; a single process stops where it reads the sample). Raises UserError
    if there is no checkpoint to return to, after too many rollbacks, and for too many damaged samples.
    """

    def __init__(
        self,
        *,
        skipped: Count = 50,
        collapsed: Amount = 20,
        at_most: Amount = 3,
        max_bad: Share = 1e-3,
        samples: int | None = None,
        stop: bool = False,
    ) -> None:
        self.skipped, self.collapsed, self.at_most, self.max_bad = skipped, collapsed, at_most, max_bad
        self.samples, self.stop = samples, stop
        self._seen: dict[str, tuple[int, float]] = {}  # updates, sum of the weights at the last reading
        self._useless: list[int] = []  # images at the readings in a row of a collapsed game
        self._read = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Skip what was read before a resume."""
        self._read = engine_of(pl_module).run.read_at

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check a new line of metrics."""
        engine = engine_of(pl_module)
        if engine.run.read_at == self._read:
            return
        self._read = engine.run.read_at
        self._check_samples(trainer, engine)
        found = self._diagnose(trainer, engine)
        if found is not None:
            self._go_back(trainer, engine, *found)

    def _check_samples(self, trainer: Trainer, engine: Engine) -> None:
        bad, among = len(engine.run.damaged), self.samples or engine.clock.images
        allowed = 0 if self.stop else max(self.max_bad * among, int(self.samples is not None))
        if bad <= allowed:
            return
        save_now(trainer, engine)
        limit = "" if self.stop else f", more than rollback.max_bad={self.max_bad:g}"
        way = "train without them by data.train.on_error=skip" if self.stop else "raise rollback.max_bad="
        raise UserError(
            f"{bad:,} of {among:,} samples were damaged{limit}; the first are named above: fetch or build "
            f"their shards again, take the samples out, or {way}, and resume the run"
        )

    def _diagnose(self, trainer: Trainer, engine: Engine) -> tuple[str, str, int] | None:
        """What is wrong, the way out, and the number of images up to which it was not."""
        clock = engine.clock
        for name, streak in engine.run.skipped().items():
            if streak >= self.skipped:
                why = f"the last {streak} updates of the {name} had gradients that are not finite"
                return why, CALMER, clock.images - streak * engine.batch_size
        if engine.run.asked.sick or clock.done:
            engine.run.asked.sick = False
            place = not_finite(trainer, engine)
            if place is not None:
                return f"{place} is not finite", CALMER, clock.images
        # Rewards without a spread move nothing, and rightly so: the method itself reports that.
        still = self._still(engine) if engine.objective.proxy is None else None
        useless = still or engine.objective.collapsed(engine.run.line)
        self._useless = [*self._useless, clock.images] if useless else []
        count = len(self._useless)
        if count == NOTED or (clock.done and count == NOTED - 1):
            self._note(trainer, engine, f"{useless} for {count} lines of metrics")
        if self.collapsed and count >= self.collapsed:
            way = UNMOVED if still else ALLOWED
            return f"{useless} for {self.collapsed} lines of metrics", way, self._useless[0] - 1
        return None

    def _still(self, engine: Engine) -> str | None:
        """Who has been updated since the last reading and still has the same weights, as a clause."""
        before, self._seen = self._seen, {}
        for name in engine.learners:
            sums = [all_of(p.detach().double().sum()) for p in engine.seats.trainable[name]]
            self._seen[name] = engine.clock.played.get(name, 0), float(torch.stack(sums).sum())
        for name, (updates, weights) in before.items():
            if self._seen[name][0] > updates and self._seen[name][1] == weights:
                return f"the weights of the {name} have not changed"
        return None

    def _note(self, trainer: Trainer, engine: Engine, what: str) -> None:
        """Say it in the log and, through the run's status, in the report."""
        if any(said.endswith(what) for said in engine.run.notes):
            return
        engine.run.notes.append(f"at {engine.clock.images:,} images: {what}")
        if trainer.is_global_zero:
            print(f"note: {engine.run.notes[-1]}", flush=True)

    def _go_back(self, trainer: Trainer, engine: Engine, why: str, way: str, before: int) -> None:
        count, images = engine.run.rollbacks + 1, engine.clock.images
        if count > self.at_most:
            raise UserError(
                f"the run diverged again at {images:,} images ({why}) after {self.at_most} rollbacks: {way}, "
                "or raise rollback.at_most="
            )
        path = self._before(trainer, before)
        if path is None:
            raise UserError(
                f"the run diverged at {images:,} images ({why}), and no checkpoint is from before that: "
                f"{way}, or look at the data"
            )
        content = read(path)
        trainer.strategy.barrier()  # all have read it before the first saves under its name
        if trainer.is_global_zero:
            for later in manifests(path.parent):
                if later > path:
                    set_aside(later)
        notes = engine.run.notes
        engine.on_load_checkpoint(content)
        engine.run.notes = notes
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            callback.load_state_dict(content["callbacks"].get(callback.state_key, callback.state_dict()))
        trainer.strategy.load_model_state_dict(content)
        trainer.strategy.load_optimizer_state_dict(content)
        engine.run.rollbacks, engine.run.asked.save, self._useless, self._seen = count, True, [], {}
        self._read = engine.run.read_at
        trainer.should_stop = engine.run.asked.stop
        rewind(trainer.loggers, engine.clock.images, scored=not engine.run.unscored)
        engine.write({"rollbacks": float(count)})
        if trainer.is_global_zero:
            print(
                f"Diverged at {images:,} images: {why}. Back to {path.name}, on with later data "
                f"(rollback {count} of {self.at_most})",
                flush=True,
            )

    def _before(self, trainer: Trainer, images: int) -> Path | None:
        """The newest intact checkpoint up to `images`, chosen by rank 0."""
        chosen: list[Path | None] = [None]
        if trainer.is_global_zero:
            writer(trainer).wait()
            known = reversed(manifests(Checkpoint.folder(trainer)).items())
            chosen = [next((path for path, m in known if m["images"] <= images and intact(path)), None)]
        if world_size() > 1:
            dist.broadcast_object_list(chosen, src=0)
        return chosen[0]

    def state_dict(self) -> dict[str, Any]:
        """The streak of readings, so that a resumed run rolls back when the uninterrupted one does."""
        return {"useless": list(self._useless), "seen": dict(self._seen)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._useless = [int(images) for images in state_dict["useless"]]
        self._seen = {name: (int(n), float(value)) for name, (n, value) in state_dict.get("seen", {}).items()}
