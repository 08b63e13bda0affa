"""The one clock of a run: images seen, and updates of the player that leads.

Lightning's `global_step` counts optimizer steps. Schedules, cadences, EMA half-lives, names of checkpoints
and x-axes here count images, which mean the same for any batch size, number of ranks and number of D's turns.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Clock:
    """How far a run has come; the same on every rank.

    total_images: length of the run; lead: the player that leads; images: seen by all ranks together; updates:
    of the lead, skipped ones included; played: updates of every player; reached: the progress of the run that
    this one extends, 0 if it extends none.
    """

    total_images: int
    lead: str
    images: int = 0
    updates: int = 0
    played: dict[str, int] = field(default_factory=dict)
    reached: float = 0.0

    @property
    def progress(self) -> float:
        """Completed share of the run, images / total_images, in [0, 1]."""
        return min(1.0, self.images / self.total_images)

    @property
    def furthest(self) -> float:
        """The progress that decides when phases begin: that of the run which this one extends, if greater."""
        return max(self.progress, self.reached)

    @property
    def done(self) -> bool:
        """Whether all images have been seen."""
        return self.images >= self.total_images

    def count(self, player: str) -> None:
        """One more update of a player."""
        self.played[player] = self.played.get(player, 0) + 1
        self.updates = self.played.get(self.lead, 0)

    def state_dict(self) -> dict[str, Any]:
        """What has been counted; the total comes from the configuration."""
        counts = {"images": self.images, "updates": self.updates, "played": dict(self.played)}
        return counts | ({"reached": self.reached} if self.reached else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.images, self.updates, self.played = (
            int(state["images"]),
            int(state["updates"]),
            dict(state["played"]),
        )
        self.reached = float(state.get("reached", 0.0))


def crossed(before: int, after: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, after]; never for every = 0."""
    return every > 0 and after // every > before // every
