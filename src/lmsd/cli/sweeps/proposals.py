"""Which values a sweep tries next: all of a grid, or what Optuna makes of the trials so far.

Optuna keeps no file of its own here: it is told the trials of the ledger anew each time, so that a sweep that
was killed goes on from what it knew. Its sampler is seeded by a hash of the sweep's seed and their number.
"""

import hashlib
from collections.abc import Sequence
from statistics import median
from typing import Any, Literal

from lmsd.cli.sweeps.space import Axis, Space
from lmsd.cli.sweeps.trials import Trial
from lmsd.errors import UserError
from lmsd.evaluation.catalog import Direction

Method = Literal["grid", "tpe", "random"]
BEFORE_PRUNING = 3
ASKS = 20
"""Proposals for one trial, before the next combination that was not tried is taken."""


def propose(
    space: Space, trials: Sequence[Trial], *, method: Method, direction: Direction, seed: int
) -> dict[str, Any] | None:
    """Values for the next trial, which no trial had; None when every combination was tried."""
    tried = [trial.values for trial in trials]
    if method == "grid":
        return next((values for values in space.grid() if values not in tried), None)
    number = int.from_bytes(hashlib.sha256(f"{seed},{len(trials)}".encode()).digest()[:4])
    study = _study(space, trials, method=method, direction=direction, seed=number)
    distributions = {axis.key: _distribution(axis) for axis in space.axes}
    for _ in range(ASKS if len(tried) < space.size() else 0):
        # what is asked again stays in the study as one that runs, from which TPE keeps away
        values = dict(study.ask(distributions).params)
        if values not in tried:
            return values
    size = int(space.size())  # so many repetitions: the values can be counted
    every = (space.at((number + step) % size) for step in range(size))
    return next((values for values in every if values not in tried), None)


def _study(space: Space, trials: Sequence[Trial], *, method: Method, direction: Direction, seed: int) -> Any:
    """An Optuna study that knows the trials."""
    try:
        import optuna
    except ImportError:
        raise UserError(f"sweep.method={method} needs Optuna: pip install 'lmsd[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    samplers = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed, n_startup_trials=5, constant_liar=True),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
    }
    study = optuna.create_study(
        direction="minimize" if direction == "min" else "maximize", sampler=samplers[method]()
    )
    distributions = {axis.key: _distribution(axis) for axis in space.axes}
    states = {"done": "COMPLETE", "failed": "FAIL", "pruned": "PRUNED"}
    for trial in trials:
        known = optuna.trial.create_trial(
            params=trial.values,
            distributions=distributions,
            state=optuna.trial.TrialState[states.get(trial.state, "RUNNING")],
            value=trial.result.value if trial.state == "done" else None,
            intermediate_values=trial.result.points,
        )
        study.add_trial(known)
    return study


def _distribution(axis: Axis) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if axis.choices:
        return CategoricalDistribution(axis.choices)
    if axis.whole:
        return IntDistribution(int(axis.low), int(axis.high), log=axis.log)
    return FloatDistribution(axis.low, axis.high, log=axis.log)


def hopeless(trial: Trial, trials: Sequence[Trial], *, direction: Direction) -> bool:
    """Whether a running trial's best score so far is worse than the median of the others' at the same images.

    The median rule of Vizier (Golovin et al. 2017, section 3.2.2); never before three others are done.
    """
    sign, points = 1.0 if direction == "min" else -1.0, trial.result.points
    images = max(points, default=0)
    done = [other.result.points for other in trials if other.state == "done"]
    until = [[sign * value for at, value in found.items() if at <= images] for found in done]
    reached = [min(values) for values in until if values]
    if images == 0 or len(reached) < BEFORE_PRUNING:
        return False
    return min(sign * value for value in points.values()) > median(reached)
