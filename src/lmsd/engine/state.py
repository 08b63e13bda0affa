"""What a run records about itself, apart from weights, optimizers and its clock.

persisted    goes into checkpoints, so that a resumed run knows what an uninterrupted one would
asked        what is requested of the process at the moment; none of it outlives the process
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Requests:
    """What is requested of a run, or under way in it, at the moment.

    code: exit code with which this rank wants the run to end, 0 to continue; stop: set by all ranks to end
    the run, with a checkpoint, after the current batch; save: set by all ranks to have a checkpoint;
    evaluating: an evaluation is running, here or on another rank; breakable: one that a signal may interrupt;
    sick: a checkpoint was refused because the state is not finite; ended: by a callback of the user's, which
    `code` tells the other ranks.
    """

    code: int = 0
    stop: bool = False
    save: bool = False
    evaluating: bool = False
    breakable: bool = False
    sick: bool = False
    ended: bool = False


@dataclass
class RunState:
    """How a run is going; the same on every rank, except for what is asked.

    rollbacks: how many there were; damaged: numbers of the damaged samples, each once however often it came,
    over all ranks whenever metrics are read; unscored: an evaluation was interrupted, or not begun after a
    signal; read_at: images at the last line of metrics; line: that line; streaks: consecutive skipped updates
    of each player up to now, on the device; notes: remarks for the report; scores: of the last evaluation;
    scored_at: images at that evaluation, -1 before the first.
    """

    rollbacks: int = 0
    damaged: set[int] = field(default_factory=set)
    unscored: bool = False
    read_at: int = 0
    line: dict[str, float] = field(default_factory=dict)
    streaks: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    scored_at: int = -1
    asked: Requests = field(default_factory=Requests)

    def count(self, player: str, norm: Tensor) -> None:
        """Note whether an update was skipped, by its gradient's norm; does not wait for the device."""
        streak = self.streaks.get(player, norm.new_zeros(()))
        self.streaks[player] = torch.where(norm.isfinite(), 0.0, streak + 1.0)

    def skipped(self) -> dict[str, int]:
        """The streaks as numbers. Waits for the device."""
        return {name: int(streak) for name, streak in self.streaks.items()}

    def state_dict(self, images: int) -> dict[str, Any]:
        """What persists, after `images` images; only scores of this very moment belong in the checkpoint."""
        return {
            "metrics": dict(self.scores) if self.scored_at == images else {},
            "line": dict(self.line),
            "unscored": self.unscored,
            "streaks": self.skipped(),
            "rollbacks": self.rollbacks,
            "damaged": sorted(self.damaged),
            "read_at": self.read_at,
            **({"notes": list(self.notes)} if self.notes else {}),
        }

    def load_state_dict(self, state: Mapping[str, Any], images: int, device: torch.device) -> None:
        """Continue from a checkpoint of `images` images."""
        self.scores, self.scored_at, self.line = dict(state["metrics"]), images, dict(state["line"])
        self.unscored, self.rollbacks = bool(state["unscored"]), int(state["rollbacks"])
        self.damaged, self.read_at = set(state.get("damaged", ())), int(state["read_at"])
        self.notes = list(state.get("notes", ()))
        streaks = state["streaks"].items()
        self.streaks = {name: torch.tensor(float(n), device=device) for name, n in streaks}
