"""precision=auto: which arithmetic trains this run faster on this device, by a trial of both on a batch.

A trial plays the turns of a batch without updates: forward and backward passes of every player whose turn it
is at the start of the run. What they change beside gradients (buffers, running states) is put back, and noise
is keyed by positions, so a run is the same to the last bit whether its precision was chosen or named.
"""

import copy
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from lmsd.engine.hardware import Precision
from lmsd.engine.module import Engine
from lmsd.rng import Rng
from lmsd.types import Batch

ROUNDS, ENOUGH = 4, 5.0
"""Trials of each precision, of which the first warms up; no further ones after so many seconds in all."""
GAIN = 1.1
"""How much faster than float32 bfloat16 must be to be worth its rounding."""


def choice(seconds: Mapping[Precision, float]) -> Precision:
    """bfloat16 if it is faster by a tenth, else float32."""
    return "bf16-mixed" if GAIN * seconds["bf16-mixed"] < seconds["32-true"] else "32-true"


def timed(engine: Engine, batch: Batch, device: torch.device) -> dict[Precision, float]:
    """Seconds of a batch's turns in each precision, the least of a few trials, taken in turns.

    batch: as much as a rank has in memory at once. The engine is left on the CPU.
    """
    found: dict[Precision, float] = {"32-true": 0.0, "bf16-mixed": 0.0}
    began = time.monotonic()
    with _as_it_was(engine), torch.compiler.set_stance("force_eager"):
        engine.to(device)
        batch = batch.to(device)
        for trial in range(ROUNDS):
            for name in found:
                spent = _seconds(engine, batch, half=name == "bf16-mixed")
                found[name] = min(found[name], spent) if trial > 1 else spent
            if time.monotonic() - began > ENOUGH:
                break
    return found


def _seconds(engine: Engine, batch: Batch, *, half: bool) -> float:
    """How long the turns of a batch take, without their updates."""
    device = batch.x.device
    start = time.monotonic()
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        with torch.no_grad():
            encoded = engine.encoded(batch)
        clock, rng = copy.deepcopy(engine.clock), Rng(engine.seed, encoded.position)
        turns = iter(engine.objective.turns(engine.roles, encoded, clock, rng))
        while True:
            with torch.no_grad():
                turn = next(turns, None)
            if turn is None:
                break
            with engine.seats.only(turn.player) as parameters, torch.enable_grad():
                loss = turn.loss()
                with torch.autocast(device.type, enabled=False):
                    loss.value.backward()  # type: ignore[no-untyped-call]
                for parameter in parameters:
                    parameter.grad = None
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic() - start


@contextmanager
def _as_it_was(engine: Engine) -> Iterator[None]:
    """Put everything back that a trial may change: weights, buffers, the objective's state, torch's noise."""

    def tensors() -> list[torch.Tensor]:  # buffers are other objects once they have moved
        return [*engine.players.parameters(), *engine.players.buffers()]

    kept = [tensor.detach().to("cpu", copy=True) for tensor in tensors()]
    state = copy.deepcopy(dict(engine.objective.state_dict()))
    engine.seats.switch(on=False)
    try:
        with torch.random.fork_rng():
            yield
    finally:
        engine.to("cpu")
        engine.seats.switch(on=True)
        with torch.no_grad():
            for tensor, before in zip(tensors(), kept, strict=True):
                tensor.copy_(before)
        engine.objective.load_state_dict(state)
