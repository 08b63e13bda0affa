"""How much of a GPU a run uses: model FLOPs utilization (PaLM, Chowdhery et al. 2022, appendix B).

    MFU = Σ_player (FLOPs of one of its updates) · (its updates) / (seconds · peak)

The FLOPs of an update (forward and backward passes of this rank's share, as torch counts them) are measured
in the first batch after every line of metrics, so that a new phase of a method is measured again. That batch
runs uncompiled, and is the same one in a run that was killed and resumed. Recomputed activations count twice;
what an objective computes between its turns does not count.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

PEAKS: Mapping[str, float] = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
}
"""Dense bfloat16 FLOP/s by part of the device's name, longer names first; from the maker's data sheets."""


def _attended(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """FLOPs of the CPU's fused attention, which torch's own table lacks."""
    return sdpa_flop_count(query.shape, key.shape, value.shape)  # type: ignore[no-any-return]


def _attended_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """FLOPs of its backward pass."""
    return sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)  # type: ignore[no-any-return]


FORMULAS: Mapping[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attended,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attended_backward,
    **flop_registry,
}
"""FLOPs of an operation by its arguments and its result."""


def peak(name: str) -> float | None:
    """Dense bfloat16 FLOP/s of a device; None if unknown."""
    words = name.replace("-", " ").split()
    return next((flops for part, flops in PEAKS.items() if set(part.split()) <= set(words)), None)


def utilization(flops: Mapping[str, float], updates: Mapping[str, int], seconds: float, peak: float) -> float:
    """MFU from the FLOPs of one update and the number of updates, by player."""
    return sum(flops[name] * updates[name] for name in flops) / (seconds * peak)


class Counter(TorchDispatchMode):
    """Sums the FLOPs of all operations by torch's own formulas.

    torch's FlopCounterMode also hooks into every module, which changes how gradients are rounded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and add its cost."""
        found = func(*args, **(kwargs or {}))
        cost = FORMULAS.get(func._overloadpacket)
        if cost is not None:
            self.total += cost(*args, **(kwargs or {}), out_val=found)
        return found


class Flops:
    """The MFU between two lines of metrics; without a peak, nothing is measured.

    latest: between the last two lines, None until there are two.
    """

    def __init__(self, peak: float | None = None) -> None:
        self.peak = peak
        self.latest: float | None = None
        self._of: dict[str, float] = {}
        self._updates: dict[str, int] = {}
        self._began: float | None = None
        self._measure = False

    def begin(self, *, measure: bool) -> None:
        """Begin a batch; measure its updates, or only count them."""
        self._measure = measure and self.peak is not None
        if self._began is None:
            self._began = time.monotonic()

    @contextmanager
    def update(self, player: str) -> Iterator[None]:
        """Surround the passes of one update of a player."""
        self._updates[player] = self._updates.get(player, 0) + 1
        if not self._measure or player in self._of:
            yield
            return
        # A compiled net whose first call is inside a dispatch mode would stay uncompiled for good.
        with torch.compiler.set_stance("force_eager"), Counter() as counter:
            yield
        self._of[player] = counter.total

    def end(self) -> None:
        """Take stock at a line of metrics, when the device has caught up."""
        if self.peak is not None and self._began is not None and self._of:
            seconds = time.monotonic() - self._began
            self.latest = utilization(self._of, self._updates, seconds, self.peak)
        self._of, self._updates, self._began = {}, {}, None


def peak_of(device: torch.device) -> float | None:
    """The peak of a CUDA device, if its name is known; None for a CPU."""
    return peak(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
