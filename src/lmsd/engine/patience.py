"""Ends a run once its held-out score has not improved for a while; the best checkpoint is kept.

best_k = min(best_{k−1}, score_k);    stop at the first k with  k − argmin ≥ patience,    k counts evaluations

A small data set is learned by heart sooner or later, and images of later checkpoints are worse, or copies.
"""

import math
import sys
from typing import Any

from lightning.pytorch import Trainer

from lmsd.engine.module import Engine
from lmsd.engine.scored import Scored
from lmsd.errors import UserError


class Patience(Scored):
    """Ends a run after `evaluations` of them in a row without a better score than the best before.

    judge: how the score's name begins, lower is better. It has `Checkpoint` save whenever a score is the best
    so far. A score that is not finite is no better. Raises UserError for less than one evaluation.
    """

    def __init__(self, evaluations: int, *, judge: str = "val/fd[") -> None:
        if evaluations < 1:
            raise UserError(f"patience={evaluations}: at least one evaluation, or 0 for none of this")
        super().__init__()
        self.evaluations, self.judge = evaluations, judge
        self._best, self._at, self._worse = math.inf, -1, 0

    def scored(self, trainer: Trainer, engine: Engine) -> None:
        """Count an evaluation, and end the run when it is due."""
        run = engine.run
        names = [name for name in run.scores if name.startswith(self.judge) and name.endswith("]")]
        if not names and run.scores:
            raise UserError(
                f"patience={self.evaluations} goes by {self.judge.rstrip('[')}, and this evaluation has none "
                "(too few images for its features?): raise evaluate.n, add val images, or take patience=0"
            )
        if not names:  # the evaluation itself could not be written down
            return
        score = run.scores[names[0]]
        better = math.isfinite(score) and score < self._best
        self._best, self._at = (score, self.seen) if better else (self._best, self._at)
        self._worse = 0 if better else self._worse + 1
        run.asked.save |= better
        if self._worse >= self.evaluations and not engine.clock.done:
            run.asked.stop = trainer.should_stop = True
            said = (
                f"stopped by patience={self.evaluations}: {names[0]} was best at {self._at:,} images, "
                f"{self._best:.4g}"
            )
            run.notes.append(said)
            if trainer.is_global_zero:
                print(f"S{said[1:]}; that checkpoint is kept", file=sys.stderr)

    def state_dict(self) -> dict[str, Any]:
        """The best evaluation, and how many have been no better since."""
        return {"best": self._best, "at": self._at, "seen": self.seen, "worse": self._worse}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._best, self._at = float(state_dict["best"]), int(state_dict["at"])
        self.seen, self._worse = int(state_dict["seen"]), int(state_dict["worse"])
