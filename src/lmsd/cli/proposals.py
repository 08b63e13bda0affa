"""Which values a sweep tries next: all of a grid, or what Optuna makes of the trials so far.

Optuna keeps no file of its own here: it is told the trials of the ledger anew each time, so that a sweep that
was killed goes on from what it knew. Its sampler is seeded by how many there are, so that it repeats none.
"""

from collections.abc import Sequence
from statistics import median
from typing import Any, Literal

from lmsd.cli.space import Axis, Space
from lmsd.cli.trials import Trial
from lmsd.errors import UserError

Method = Literal["grid", "tpe", "random"]
Direction = Literal["min", "max"]
BEFORE_PRUNING = 3


def propose(
    space: Space, trials: Sequence[Trial], *, method: Method, direction: Direction, seed: int
) -> dict[str, Any] | None:
    """Values for the next trial; None when a grid is through."""
    if method == "grid":
        tried = [trial.values for trial in trials]
        return next((values for values in space.grid() if values not in tried), None)
    try:
        import optuna
    except ImportError:
        raise UserError(f"sweep.method={method} needs Optuna: pip install 'lmsd[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    number = seed + len(trials)
    samplers = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=number, n_startup_trials=5, constant_liar=True),
        "random": lambda: optuna.samplers.RandomSampler(seed=number),
    }
    study = optuna.create_study(
        direction="minimize" if direction == "min" else "maximize", sampler=samplers[method]()
    )
    distributions = {axis.key: _distribution(axis) for axis in space.axes}
    states = {"done": "COMPLETE", "failed": "FAIL", "pruned": "PRUNED", "running": "RUNNING"}
    for trial in trials:
        state = optuna.trial.TrialState[states[trial.state]]
        known = optuna.trial.create_trial(
            params=trial.values,
            distributions=distributions,
            state=state,
            value=trial.value if trial.state == "done" else None,
            intermediate_values=trial.points,
        )
        study.add_trial(known)
    return dict(study.ask(distributions).params)


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
    others = [other for other in trials if other.state == "done"]
    if not trial.points or len(others) < BEFORE_PRUNING:
        return False
    sign = 1.0 if direction == "min" else -1.0
    images = max(trial.points)
    reached = [min(sign * v for at, v in other.points.items() if at <= images) for other in others
               if any(at <= images for at in other.points)]  # fmt: skip
    if images == 0 or len(reached) < BEFORE_PRUNING:
        return False
    return min(sign * value for value in trial.points.values()) > median(reached)
