"""A share of right answers as a `torchmetrics.Metric`: sums are all that it and its interval need."""

import torch
from torch import Tensor
from torchmetrics import Metric

from lmsd.arguments import explained
from lmsd.metrics.intervals import Interval, Score, wilson


class Share(Metric):
    """The share of right answers among independent ones, with Wilson's interval: hits and trials are sums."""

    is_differentiable = False
    full_state_update = False
    higher_is_better = True
    hits: Tensor
    trials: Tensor

    def __init__(self, *, sync: bool = True) -> None:
        super().__init__(sync_on_compute=sync)
        for name in ("hits", "trials"):
            self.add_state(name, default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @explained
    def update(self, right: Tensor) -> None:  # type: ignore[override]
        """Whether each answer is right, bool of any shape."""
        self.hits = self.hits + right.bool().sum()
        self.trials = self.trials + right.numel()

    @explained
    def compute(self) -> Tensor:
        """The share, float64."""
        return torch.tensor(self._share().value, dtype=torch.float64)

    @explained
    def scores(self) -> dict[str, Score]:
        """{"share": ...} with its interval."""
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync, should_unsync=self._should_unsync
        ):
            return {"share": Score(self._share())}

    def _share(self) -> Interval:
        return wilson(int(self.hits), int(self.trials))
