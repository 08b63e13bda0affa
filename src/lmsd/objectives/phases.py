"""Objectives one after the other, by shares of the run.

    phase i plays while start_i ≤ images/total < start_i + share_i,    start_i = Σ_{j<i} share_j
    its own progress, which its weights and rates follow: (images/total − start_i)/share_i

The clock alone decides, so a killed run continues in the phase that it was in.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from lmsd.errors import UserError
from lmsd.objectives.base import Cast, Clock, Facts, Objective, generator_of
from lmsd.objectives.terms import Annealed
from lmsd.rng import Rng
from lmsd.types import Batch, Loss, Players, Turn


@dataclass(frozen=True)
class Phase:
    """An objective and its share of the run.

    share: in [0, 1]; None, in one phase: what the others leave. rate: factor on the learning rates, a number,
    or a pair (start, end) joined by a cosine over the phase. waits: by role, the share of the run that passes
    before it joins. restart: roles that begin the phase from their averages, with a fresh optimizer.
    freeze_text: the lead's text encoder does not learn.
    """

    objective: Objective
    share: float | None = None
    rate: float | Sequence[float] = 1.0
    waits: Mapping[str, float] = field(default_factory=dict)
    restart: tuple[str, ...] = ()
    freeze_text: bool = False


@dataclass(frozen=True)
class PhaseClock:
    """The run's clock, with the progress of one phase."""

    run: Clock
    start: float
    share: float

    @property
    def images(self) -> int:
        """As the run's."""
        return self.run.images

    @property
    def updates(self) -> int:
        """As the run's."""
        return self.run.updates

    @property
    def played(self) -> Mapping[str, int]:
        """As the run's."""
        return self.run.played

    @property
    def total_images(self) -> int:
        """As the run's."""
        return self.run.total_images

    @property
    def progress(self) -> float:
        """Completed share of the phase."""
        return max(0.0, self.run.progress - self.start) / (self.share or 1.0)

    @property
    def furthest(self) -> float:
        """The furthest share of the phase."""
        return (self.run.furthest - self.start) / (self.share or 1.0)


class Phases(Objective):
    """Play objectives one after the other; see the module for when.

    One role leads them all, and a role is the same part in every phase. Raises UserError if phases do not fit
    together or into the run.
    """

    def __init__(self, phases: Sequence[Phase]) -> None:
        self.phases = tuple(phases)
        given = [phase.share for phase in self.phases]
        known = [share for share in given if share is not None]
        if not given or min(known, default=0.0) < 0 or sum(known) > 1 or given.count(None) > 1:
            raise UserError(
                f"phases: {given} are shares of the run: none negative, in all at most 1, one None"
            )
        self.shares = [1.0 - sum(known) if share is None else share for share in given]
        self.starts = [sum(self.shares[:index]) for index in range(len(given))]
        self.rates = [Annealed(phase.rate) for phase in self.phases]
        for phase, share, rate in zip(self.phases, self.shares, self.rates, strict=True):
            if rate.least < 0:
                raise UserError(f"phases: rate={rate} must be 0 or more")
            if any(not 0 <= wait <= share + 1e-9 for wait in phase.waits.values()):
                raise UserError(f"phases: {dict(phase.waits)} are shares of the run within one of {share:g}")
        for index, phase in enumerate(self.phases):
            if phase.restart and not self._newcomers(index):
                raise UserError("phases: a restart goes with a player that joins, and none does there")

    @property
    def cast(self) -> Cast:
        """Everybody who plays in some phase."""
        parts: dict[str, Any] = {}
        for phase in reversed(self.phases):
            for role, part in phase.objective.cast.items():
                if parts.setdefault(role, part) != part:
                    raise UserError(f"phases: {role!r} is {parts[role]} in one and {part} in another")
        return parts

    @property
    def lead(self) -> str:
        """The role that leads every phase."""
        leads = {phase.objective.lead for phase in self.phases}
        if len(leads) > 1:
            raise UserError(f"phases: one role must lead them all, not {sorted(leads)}")
        return leads.pop()

    @property
    def proxy(self) -> str | None:
        """The last phase's."""
        return self.phases[-1].objective.proxy

    def prepare(self, facts: Facts) -> None:
        """Prepare every phase."""
        for phase in self.phases:
            phase.objective.prepare(facts)

    def turns(self, players: Players, batch: Batch, clock: Clock, rng: Rng) -> Iterator[Turn]:
        """The turns of the current phase, of the players that have joined."""
        index = max(i for i, start in enumerate(self.starts) if start <= clock.furthest or i == 0)
        phase, start = self.phases[index], self.starts[index]
        inner = PhaseClock(clock, start, self.shares[index])
        rate = self.rates[index](inner.progress)
        begins = bool(phase.restart) and not any(clock.played.get(role) for role in self._newcomers(index))
        for turn in phase.objective.turns(players, batch, inner, rng):
            if clock.furthest < start + phase.waits.get(turn.player, 0.0):
                continue
            restart = phase.restart if begins else ()
            loss = turn.loss
            if phase.freeze_text and turn.player == self.lead:
                loss = _without_text(generator_of(players, self.lead).conditioner, loss)
            yield replace(turn, loss=loss, rate=turn.rate * rate, restart=(*turn.restart, *restart))
            begins = False

    def _newcomers(self, index: int) -> set[str]:
        """The roles that play in a phase and in none before it."""
        before = {role for phase in self.phases[:index] for role in phase.objective.cast}
        return set(self.phases[index].objective.cast) - before

    def probe(self, players: Players, batch: Batch, rng: Rng) -> Mapping[str, Tensor]:
        """What the phases measure, by name; later phases win."""
        found: dict[str, Tensor] = {}
        for phase in self.phases:
            found |= phase.objective.probe(players, batch, rng)
        return found

    def collapsed(self, metrics: Mapping[str, float]) -> str | None:
        """The verdict of the first phase that has one."""
        said = (phase.objective.collapsed(metrics) for phase in self.phases)
        return next((clause for clause in said if clause is not None), None)

    def state_dict(self) -> Mapping[str, Any]:
        """The states of the phases that have one, by number."""
        states = ((str(i), phase.objective.state_dict()) for i, phase in enumerate(self.phases))
        return {number: dict(state) for number, state in states if state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for i, phase in enumerate(self.phases):
            phase.objective.load_state_dict(state.get(str(i), {}))


def _without_text(conditioner: nn.Module, loss: Callable[[], Loss]) -> Callable[[], Loss]:
    def played() -> Loss:
        with _still(conditioner):
            return loss()

    return played


@contextmanager
def _still(module: nn.Module) -> Iterator[None]:
    """Freeze its trainable parameters for a while."""
    moving = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in moving:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in moving:
            parameter.requires_grad_(True)
