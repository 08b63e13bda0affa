"""What a run would need, and how long it would take: from a rehearsal to figures.

bytes a rank     weights + averages + optimizer + gradients + activations at the worst moment + buckets
sharded          the lead's first four are divided by the ranks W; two blocks are gathered at a time
bytes sent       of each update, per rank: 2 (W−1)/W · gradients (a ring's all-reduce)
sharded: 3 (W−1)/W · weights (gathered forward and backward, gradients scattered)
seconds          FLOPs of a rank's share of a batch / (peak · utilization), recomputation and what lies
between turns included
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lmsd.engine.flops import peak
from lmsd.engine.imagined import KINDS, Kind
from lmsd.engine.rehearsal import Rehearsal, Update

MEMORY: Mapping[str, float] = {
    "H100": 80e9,
    "H100-PCIe": 80e9,
    "H100-NVL": 94e9,
    "H200": 141e9,
    "B200": 180e9,
    "A100": 80e9,
    "A100-40GB": 40e9,
    "L40S": 48e9,
    "L4": 24e9,
    "A10": 24e9,
}
"""Bytes of a GPU, from the makers' data sheets."""
CONTEXT = 1.5e9
"""Bytes that a GPU's libraries take for themselves, about."""
PUBLISHED = (0.12, 0.48)
"""Utilizations that trainings of diffusion models have published: open scripts of 2023, the best of 2025."""


@dataclass(frozen=True)
class Device:
    """A GPU: its dense bfloat16 FLOP/s and its bytes."""

    name: str
    flops: float
    memory: float

    @classmethod
    def named(cls, name: str) -> "Device":
        """The GPU of a name."""
        flops = peak(name)
        assert flops is not None
        return cls(name, flops, MEMORY[name])


@dataclass(frozen=True)
class Spread:
    """How a run is laid out: ranks; who leads, and whether that is sharded; bytes of its largest block.

    whole: the lead is one that cannot be sharded.
    """

    ranks: int
    lead: str
    sharded: bool = False
    block: int = 0
    micro_batches: int = 1
    whole: bool = False


@dataclass(frozen=True)
class Plan:
    """A rehearsal, with and without recomputed activations (None where a net cannot), laid out on devices.

    checkpointing: which of the two is meant; buckets: bytes of gradients that are on their way.
    """

    kept: Rehearsal
    recomputed: Rehearsal | None
    spread: Spread
    buckets: int
    checkpointing: bool = False

    @property
    def meant(self) -> Rehearsal:
        """The rehearsal of the run as it is configured."""
        return self.recomputed if self.checkpointing and self.recomputed is not None else self.kept

    def memory(self, rehearsal: Rehearsal | None = None, *, ranks: int | None = None) -> dict[str, int]:
        """Bytes of a rank by kind when they are most; ranks: as many as the lead is sharded over."""
        rehearsal = rehearsal or self.meant
        worst = max(self._updates(rehearsal, ranks), key=lambda found: sum(found.values()))
        return {**worst, "buckets": self.buckets if self.spread.ranks > 1 else 0}

    def _updates(self, rehearsal: Rehearsal, ranks: int | None) -> Iterator[dict[str, int]]:
        for stretch in rehearsal.stretches:
            for update in stretch.updates:
                yield self._sharded(update, rehearsal, ranks)

    def _sharded(self, update: Update, rehearsal: Rehearsal, ranks: int | None) -> dict[str, int]:
        found: dict[str, int] = {kind: update.memory[kind] for kind in KINDS}
        parts = ranks or (self.spread.ranks if self.spread.sharded else 1)
        if parts == 1:
            return found
        own = rehearsal.standing[self.spread.lead]
        kinds: tuple[Kind, ...] = ("weights", "averages", "optimizer")
        for kind in kinds:
            found[kind] -= int(min(own.get(kind, 0), found[kind]) * (1 - 1 / parts))
        if update.player == self.spread.lead:
            found["gradients"] = int(found["gradients"] / parts)
        found["weights"] += 2 * self.spread.block
        return found

    @property
    def largest(self) -> Update:
        """The update that holds most."""
        return self.meant.largest

    @property
    def sent(self) -> float:
        """Bytes that a rank sends in a batch, the mean over the run."""
        share, found = (self.spread.ranks - 1) / self.spread.ranks, 0.0
        for player, own in self.meant.standing.items():
            sharded = self.spread.sharded and player == self.spread.lead
            each = 3 * own["weights"] if sharded else 2 * own.get("gradients", 0)
            found += self.meant.turns(player) * share * each
        return found

    @property
    def an_image(self) -> float:
        """FLOPs of an image, everything included, the mean over the run."""
        pieces = min(self.spread.micro_batches, 2)
        return self.meant.averaged() / (self.meant.images * pieces)

    @property
    def saved(self) -> int:
        """Bytes of a checkpoint."""
        kinds: tuple[Kind, ...] = ("weights", "averages", "optimizer")
        return sum(own.get(kind, 0) for own in self.meant.standing.values() for kind in kinds)

    def images_per_second(self, device: Device, utilization: float) -> float:
        """Over all ranks."""
        return self.spread.ranks * device.flops * utilization / self.an_image

    def short(self, device: Device) -> str | None:
        """The first kind of memory, in the order of `memory`, with which it does not fit; None: it fits."""
        left = device.memory - CONTEXT
        for kind, size in self.memory().items():
            left -= size
            if left < 0:
                return kind
        return None

    def ways(self, device: Device) -> Iterator[str]:
        """What to change where it does not fit, each with the bytes that it would need."""
        room, now = device.memory - CONTEXT, self.memory()
        if not self.checkpointing and self.recomputed is not None:
            yield _way("checkpointing=true", sum(self.memory(self.recomputed).values()), room)
        best = self.memory(self.recomputed)
        least = best if self.recomputed is not None else now
        rest = sum(least.values()) - least["activations"]
        pieces = next((k for k in self._pieces() if rest + least["activations"] / k < room), None)
        if pieces is not None:
            more = "checkpointing=true " if self.recomputed is not None else ""
            needs = rest + least["activations"] / pieces
            yield _way(f"{more}micro_batches={pieces * self.spread.micro_batches}", needs, room)
        fixed = self.spread.sharded or self.spread.whole
        for ranks in (2, 4, 8, 16, 32, 64) if rest >= room and not fixed else ():
            needs = sum(self.memory(self.recomputed, ranks=ranks).values())
            if needs < room or ranks == 64:
                yield _way(f"trainer=fsdp devices={ranks}", needs, room)
                break
        if self.spread.sharded and rest >= room:
            yield "more devices=, or a larger plan.gpu="
        if now["averages"] and rest >= room:
            yield _way("optim.ema=[]", sum(now.values()) - now["averages"], room)
        if rest >= room:
            yield "tuning=lora, on a pretrained folder or run: gradients, moments and averages are small"
        if rest < room <= rest + least["activations"] and pieces is None:
            yield "a larger plan.gpu=, or smaller images: one alone does not fit"

    def _pieces(self) -> Iterator[int]:
        """How often a micro-batch can be halved."""
        k = 2
        while self.meant.images % k == 0:
            yield k
            k *= 2


def _way(words: str, needs: float, room: float) -> str:
    return f"{words} ({needs / 1e9:,.1f} GB{'' if needs < room else ', which is not enough alone'})"
