"""A guard against reward hacking: the reward improves while a judge that is not optimized gets worse.

Goodhart's law shows first as a proxy and a held-out score that part ways (Gao et al. 2023): the proxy is
higher than at the best evaluation, and the judge is above the upper end of its interval there. Comparing with
the previous evaluation instead would let noise end good runs, and would miss those that get worse unevenly.
After `patience` such evaluations in a row the run ends with a checkpoint; the best one by the judge is kept.
"""

import math
import sys
from typing import Any

from lightning.pytorch import Trainer

from lmsd.engine.module import Engine
from lmsd.engine.scored import Scored


class HackingGuard(Scored):
    """Ends a run whose proxy has risen and whose judge is worse at `patience` evaluations in a row.

    judge: how the name of an evaluation's score begins, lower is better; if it has no interval, its value
    counts. proxy: a training metric, higher is better. It has `Checkpoint` save the best.
    """

    def __init__(self, *, judge: str, proxy: str, patience: int = 3) -> None:
        super().__init__()
        self.judge, self.proxy, self.patience = judge, proxy, patience
        self._best: tuple[float, float, float] | None = None  # proxy, judge, the judge's upper end
        self._parted = 0

    def scored(self, trainer: Trainer, engine: Engine) -> None:
        """Compare with the best evaluation, and end the run when they have parted."""
        names = [n for n in engine.run.scores if n.startswith(self.judge) and n.endswith("]")]
        if not names or self.proxy not in engine.run.line:
            return
        proxy, judge = engine.run.line[self.proxy], engine.run.scores[names[0]]
        if not (math.isfinite(proxy) and math.isfinite(judge)):  # every score failed: nothing to compare
            return
        best = self._best
        parted = best is not None and proxy > best[0] and judge > best[2]
        self._parted = self._parted + 1 if parted else 0
        if best is None or judge < best[1]:
            self._best = (proxy, judge, max(judge, engine.run.scores.get(f"{names[0]}/high", judge)))
            engine.run.asked.save = True
        if self._parted >= self.patience:
            engine.run.asked.stop = trainer.should_stop = True
            if trainer.is_global_zero:
                print(
                    f"Stopped: {self.proxy} has risen and {names[0]} is worse than at its best, at "
                    f"{self._parted} evaluations in a row; the best checkpoint by the latter is kept",
                    file=sys.stderr,
                )

    def state_dict(self) -> dict[str, Any]:
        """The best evaluation, and what has been seen since."""
        return {"best": self._best, "seen": self.seen, "parted": self._parted}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        best = state_dict.get("best")  # not in earlier checkpoints
        self._best = None if best is None else (float(best[0]), float(best[1]), float(best[2]))
        self.seen, self._parted = int(state_dict["seen"]), int(state_dict["parted"])
