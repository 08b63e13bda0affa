"""Machines that fail: how often to save, and what share of the time then trains.

M            mean time between failures of all machines together: 1/(rate · machines), exponential
δ, R         seconds of a save, and from a failure until the run goes on
τ = √(2δM)                                              Young 1974
τ = √(2δM) [1 + ⅓ √(δ/2M) + ⅑ δ/2M] − δ,  M if δ ≥ 2M   Daly 2006, eq. 37
share = τ / [M e^{R/M} (e^{(τ+δ)/M} − 1)]               Daly 2006, eq. 20: failures in saves and restarts too
"""

import math
from dataclasses import dataclass

_MOST = 700
"""Failures from one save to the next above which their exponential is no float64."""


@dataclass(frozen=True)
class Failing:
    """Machines that fail independently: M, δ and R of the module, in seconds."""

    between: float
    save: float
    restart: float

    def young(self) -> float:
        """Young's interval, in seconds of training between two saves."""
        return math.sqrt(2 * self.save * self.between)

    def daly(self) -> float:
        """Daly's interval, which stays good where saves take long."""
        ratio = self.save / (2 * self.between)
        if ratio >= 1:
            return self.between
        return self.young() * (1 + math.sqrt(ratio) / 3 + ratio / 9) - self.save

    def share(self, interval: float) -> float:
        """The share of the time that trains, with a save after every `interval` seconds of training.

        0 where failures come so often that no number holds how long it takes.
        """
        if interval + self.save + self.restart > _MOST * self.between:
            return 0.0
        spent = math.expm1((interval + self.save) / self.between) * math.exp(self.restart / self.between)
        return interval / (self.between * spent)
