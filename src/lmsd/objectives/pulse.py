"""Does a method's own term teach anything?

A run may shrink its weights by decay, follow a KL to a reference, log a reward, and learn nothing from it: if
all advantages are equal, or the gradient of the method's own term is exactly 0. Both are watched during the
first updates: gradients at a point where only that term sends them back, advantages before a KL is charged.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lmsd.ranks import gather

FIRST = 50
"""Updates after which the verdict falls."""


class Pulse:
    """Records, on the device, whether gradients were felt and whether advantages differed.

    sentence: what to say if a run has learned nothing; None before that is known, and if it learns.
    """

    def __init__(self) -> None:
        self.sentence: str | None = None
        self._begun: int | None = None
        self._decided = False
        self._felt: Tensor | None = None
        self._differed: Tensor | None = None

    def through(self, value: Tensor) -> Tensor:
        """`value` for the method's own term alone: the gradient that comes back is noted, not changed."""
        if self._decided or not torch.is_grad_enabled():
            return value
        if self._felt is None:
            self._felt = torch.zeros((), dtype=torch.bool, device=value.device)
        if not value.requires_grad:
            return value
        seen = value.view_as(value)
        seen.register_hook(self._note)  # type: ignore[no-untyped-call]
        return seen

    def _note(self, slope: Tensor) -> None:
        assert self._felt is not None
        self._felt = self._felt | (slope != 0).any()

    def differ(self, scores: Tensor, weight: Tensor) -> None:
        """Note whether scores [n] with a weight above 0 differ."""
        if not self._decided:
            kept = weight > 0
            high = torch.where(kept, scores, -torch.inf).amax()
            here = high > torch.where(kept, scores, torch.inf).amin()
            self._differed = here if self._differed is None else self._differed | here

    def check(self, updates: int, like: Tensor) -> str | None:
        """The sentence, once, after the first updates; every rank calls this at the same `updates`.

        like: a tensor on the device that the ranks communicate through.
        """
        self._begun = updates if self._begun is None else self._begun
        if self._decided or updates - self._begun < FIRST:
            return None
        self._decided = True
        notes = torch.tensor([[_holds(self._felt), _holds(self._differed)]], device=like.device)
        felt, differed = gather(notes.long()).any(0).tolist()
        if felt and differed:
            return None
        why = (
            "the gradient of its own term is exactly 0" if differed else "all images have the same advantage"
        )
        self.sentence = (
            f"nothing was learned from the reward in the first {FIRST} updates: {why}; look at the reward, "
            "objective.group and objective.advantages.normalize"
        )
        return self.sentence

    def state_dict(self) -> Mapping[str, Any]:
        """What has been noted."""
        return {
            "sentence": self.sentence,
            "begun": self._begun,
            "decided": self._decided,
            "felt": None if self._felt is None else bool(self._felt),
            "differed": None if self._differed is None else bool(self._differed),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.sentence, self._begun, self._decided = state["sentence"], state["begun"], state["decided"]
        self._felt, self._differed = (
            None if state[name] is None else torch.tensor(state[name]) for name in ("felt", "differed")
        )


def _holds(note: Tensor | None) -> bool:
    """What was noted; what was never looked at counts as true."""
    return note is None or bool(note)
