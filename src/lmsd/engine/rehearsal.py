"""A run's turns, played on shapes: what every update holds in memory and computes.

The engine plays them itself, with its optimizers and averages, at one moment of every stretch of the run in
which the same players play, for as many batches as it takes until all who play there have.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from lmsd.engine.flops import Counter, Flops
from lmsd.engine.imagined import Imagined, Kind, Ledger, NeedsNumbers, booked
from lmsd.engine.module import Engine
from lmsd.models.frozen import weights_of
from lmsd.objectives.base import Objective, trained
from lmsd.objectives.phases import Phases
from lmsd.types import Batch

MOST = 12
"""Batches of a stretch that are played at most."""


@dataclass(frozen=True)
class Update:
    """One update. flops: of its passes on one rank; memory: bytes by kind when they were most."""

    player: str
    flops: float
    memory: Mapping[Kind, int]

    @property
    def held(self) -> int:
        """Bytes of all kinds."""
        return sum(self.memory.values())


@dataclass(frozen=True)
class Stretch:
    """A share of the run in which all batches are like these; flops: of all of them, turns or not."""

    share: float
    batches: int
    flops: float
    updates: tuple[Update, ...]

    def state(self, player: str) -> int:
        """The most that optimizers hold in the updates of a player."""
        return max(update.memory["optimizer"] for update in self.of(player))

    def of(self, player: str) -> list[Update]:
        """The updates of a player."""
        return [update for update in self.updates if update.player == player]


@dataclass(frozen=True)
class Rehearsal:
    """What was found: the stretches, and bytes by player of what is there all the time.

    images: of the micro-batch that was played; parts: numbers of weights by part, (learning, frozen).
    """

    stretches: tuple[Stretch, ...]
    images: int
    parts: Mapping[str, tuple[int, int]]
    standing: Mapping[str, Mapping[Kind, int]]

    @property
    def largest(self) -> Update:
        """The update that holds most."""
        return max((u for stretch in self.stretches for u in stretch.updates), key=lambda update: update.held)

    def averaged(self, player: str | None = None) -> float:
        """FLOPs of a micro-batch, all in all, or of a player's turns alone: the mean over the run."""
        found = 0.0
        for stretch in self.stretches:
            whole = stretch.flops if player is None else sum(u.flops for u in stretch.of(player))
            found += stretch.share * whole / stretch.batches
        return found

    def turns(self, player: str) -> float:
        """Updates of a player a batch, the mean over the run."""
        return sum(s.share * len(s.of(player)) / s.batches for s in self.stretches)

    def turn(self, player: str) -> float:
        """FLOPs of the most costly update of a player; 0 for who never plays."""
        return max((u.flops for s in self.stretches for u in s.of(player)), default=0.0)


@dataclass(frozen=True)
class _Played:
    """An update as it was played: bytes by kind when its passes held most, and when its step did."""

    player: str
    flops: float
    moments: tuple[Mapping[Kind, int], ...]

    def settled(self, optimizer: int) -> Update:
        """The same with all optimizers' states there, which the first update of a run has yet to make."""
        moments = [{**moment, "optimizer": optimizer} for moment in self.moments]
        return Update(self.player, self.flops, max(moments, key=lambda moment: sum(moment.values())))


class Tally(Flops):
    """Counts every update, and closes the books of one when the next begins."""

    def __init__(self, engine: Engine, ledger: Ledger) -> None:
        super().__init__()
        self.engine, self.ledger, self.found = engine, ledger, list[_Played]()
        self._open: tuple[str, float, Mapping[Kind, int]] | None = None

    @contextmanager
    def update(self, player: str) -> Iterator[None]:
        """Surround the passes of one update of a player."""
        self.close()
        counter = Counter()
        with booked(self.engine.players[player], self.ledger), counter:
            yield
        self._open = player, counter.total, self.ledger.most
        self.ledger.mark()

    def close(self) -> None:
        """An update is over once its optimizer has stepped; a state that this made was no activation."""
        before, most = self.ledger.live["optimizer"], self.ledger.most
        for optimizer in self.engine.optimizers_by_role.values():
            self.ledger.book("optimizer", _tensors(optimizer))
        made = self.ledger.live["optimizer"] - before
        if self._open is not None:
            player, flops, passes = self._open
            step: dict[Kind, int] = {**most, "activations": max(0, most["activations"] - made)}
            self.found.append(_Played(player, flops, (passes, step)))
        self._open = None
        self.ledger.mark()


def rehearse(engine: Engine, made: Imagined, batch: Batch, *, half: bool = False) -> Rehearsal:
    """Play a run's turns; the engine is of the same `made`, within which this is called, as is the batch.

    batch: a micro-batch as the loader delivers it; half: autocast to bfloat16. Raises NeedsNumbers where
    shapes are not enough.
    """
    ledger = made.ledger
    ledger.book("weights", [*engine.players.parameters(), *engine.players.buffers()])
    ledger.book("averages", [*engine.ema.parameters(), *engine.ema.buffers()])
    engine.configure_optimizers()
    parts = parts_of(engine.players)
    engine.seats.switch(on=False)
    try:
        with _cast(half):
            stretches = tuple(_stretch(engine, ledger, batch, place) for place in places(engine.objective))
    except RuntimeError as error:
        if "numpy() is not supported" not in str(error):
            raise
        raise NeedsNumbers(
            f"plan: {type(engine.objective).__name__} looks at the pixels of images (most often a "
            "reward), and a plan has none: plan the run without it, objective=denoising"
        ) from error
    return Rehearsal(stretches, len(batch), parts, standing(engine))


def again(found: Rehearsal, engine: Engine, made: Imagined, batch: Batch, *, half: bool = False) -> Rehearsal:
    """The same run once more, after a change that concerns activations alone: each stretch for one batch."""
    with _cast(half):
        played = [_stretch(engine, made.ledger, batch, place) for place in places(engine.objective)]
    stretches = []
    for before, now in zip(found.stretches, played, strict=True):
        updates = tuple(
            replace(update, memory={**update.memory, "optimizer": before.state(update.player)})
            for update in now.updates
        )
        stretches.append(replace(now, updates=updates))
    return replace(found, stretches=tuple(stretches))


def _cast(half: bool) -> AbstractContextManager[object]:
    """Autocast as Lightning's mixed precision does it here."""
    return torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if half else nullcontext()


@dataclass(frozen=True)
class Place:
    """A stretch of a run: its share, the progress in its middle, and who plays there."""

    share: float
    middle: float
    playing: frozenset[str]


def places(objective: Objective) -> Iterator[Place]:
    """The stretches of a run."""
    edges = {0.0, 1.0}
    if type(objective) is Phases:
        for phase, start in zip(objective.phases, objective.starts, strict=True):
            edges |= {start, *(start + wait for wait in phase.waits.values())}
    ends = sorted(edge for edge in edges if edge <= 1)
    for start, end in pairwise(ends):
        if end - start > 1e-6:
            yield Place(end - start, (start + end) / 2, _playing(objective, (start + end) / 2))


def _playing(objective: Objective, progress: float) -> frozenset[str]:
    if type(objective) is not Phases:
        return frozenset(trained(objective.cast))
    index = max(i for i, start in enumerate(objective.starts) if start <= progress)
    phase, start = objective.phases[index], objective.starts[index]
    waiting = {role for role, wait in phase.waits.items() if progress < start + wait}
    return frozenset(trained(phase.objective.cast)) - waiting


def _stretch(engine: Engine, ledger: Ledger, batch: Batch, place: Place) -> Stretch:
    """Play batches at one moment of a run."""
    engine.clock.images = int(place.middle * engine.clock.total_images)
    before = engine.flops
    tally = engine.flops = Tally(engine, ledger)
    count, played, whole = 0, set[str](), Counter()
    while not count or (count < MOST and not place.playing <= played):
        with whole:
            played |= engine.play([engine.encoded(batch)] * min(engine.micro_batches, 2))
            tally.close()
        for role in played & set(engine.ema):
            engine.average(role).advance(engine.players[role], engine.clock.images + engine.batch_size)
        count += 1
    engine.flops = before
    updates = tuple(update.settled(ledger.live["optimizer"]) for update in tally.found)
    return Stretch(place.share, count, whole.total, updates)


def _tensors(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for state in optimizer.state.values():
        yield from (value for value in state.values() if torch.is_tensor(value))


def parts_of(players: nn.ModuleDict) -> dict[str, tuple[int, int]]:
    """Weights of every part, (learning, frozen); what two parts share counts for the first."""
    found: dict[str, tuple[int, int]] = {}
    seen: set[int] = set()
    for role, player in players.items():
        for name, part in [*player.named_children(), ("", player)]:
            learning = frozen = 0
            for _, weight in weights_of(part):
                if id(weight) in seen:
                    continue
                seen.add(id(weight))
                if weight.requires_grad:
                    learning += weight.numel()
                else:
                    frozen += weight.numel()
            if learning or frozen:
                found[f"{role}.{name}" if name else role] = (learning, frozen)
    return found


def standing(engine: Engine) -> dict[str, dict[Kind, int]]:
    """Bytes by player of weights, gradients when all are there, optimizer and averages; shared ones once."""
    seen: set[int] = set()

    def size(tensors: Iterator[Tensor] | list[Tensor]) -> int:
        total = 0
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in seen:
                seen.add(storage._cdata)
                total += storage.nbytes()
        return total

    found: dict[str, dict[Kind, int]] = {}
    for role, player in engine.players.items():
        own: dict[Kind, int] = {"weights": size([*player.parameters(), *player.buffers()])}
        moving = engine.seats.trainable[role] if role in engine.optimizers_by_role else []
        own["gradients"] = sum(weight.numel() * weight.element_size() for weight in moving)
        if role in engine.optimizers_by_role:
            own["optimizer"] = size(_tensors(engine.optimizers_by_role[role]))
        if role in engine.ema:
            own["averages"] = size([*engine.ema[role].parameters(), *engine.ema[role].buffers()])
        found[role] = own
    return found
