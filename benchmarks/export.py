"""How fast exported denoisers are on a CPU: onnxruntime in float32 and int8 beside eager torch, in turns.

    python benchmarks/export.py [--nets digits shapes cifar10 emoji] [--rounds 15]

The nets of the experiments at their full size, random weights (time does not depend on them), one thread, one
evaluation of x̂₀ at batches 1, 8 and 16. CPU seconds, so that a busy machine matters less; medians over rounds
in which the three take turns. Prints a row for each net and batch: milliseconds of each, how many times as
fast as eager onnxruntime is and as onnxruntime in float32 int8 is, the share of int8 weights, the size of the
file against float32. Writes benchmarks/results/export.json.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lmsd.cli.build.experiment import generator_spec
from lmsd.cli.config.compose import load
from lmsd.export import onnx, quantize
from lmsd.export.programs import Part, _Denoiser, condition_of, traced
from lmsd.models.conditioner import TextConditioner
from lmsd.models.generator import Generator
from lmsd.models.runtimes import program
from lmsd.spec import build

BATCHES = (1, 8, 16)
RESULTS = Path(__file__).parent / "results" / "export.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", default=["digits", "shapes", "cifar10", "emoji"])
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for name in asked.nets for row in measured(name, asked.rounds)]
    RESULTS.write_text(json.dumps({"threads": 1, "rounds": asked.rounds, "rows": rows}, indent=1) + "\n")


def measured(name: str, rounds: int) -> list[dict[str, Any]]:
    """The rows of one experiment's net."""
    generator = made(name)
    cond = condition_of(generator)
    middle = torch.full((3,), generator.process.schedule.t_noise / 2)
    inputs = {"x_t": torch.randn(3, *generator.shape), "t": middle, **cond}
    inputs |= {"z": torch.randn(3, generator.z_dim)} if generator.z_dim else {}
    part = Part(_Denoiser(generator, list(cond)), inputs, ("x0",))
    told = {"inputs": list(inputs), "outputs": ["x0"]}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for kind in ("float32", "int8"):
            onnx.save(traced(part), folder / f"{kind}.onnx", list(inputs), ["x0"])
        plain = quantize._large(folder / "int8.onnx")
        size = (folder / "float32.onnx").stat().st_size
        quantize._int8(folder / "int8.onnx")
        share = 1 - quantize._large(folder / "int8.onnx") / plain
        smaller = (folder / "int8.onnx").stat().st_size / size
        programs = {
            kind: program("onnx", folder, {**told, "file": f"{kind}.onnx"}) for kind in ("float32", "int8")
        }
        return [
            row(name, batch, part, programs, rounds) | {"int8": share, "file": smaller} for batch in BATCHES
        ]


def row(name: str, batch: int, part: Part, programs: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Milliseconds of the three at one batch size."""
    given = {key: value[torch.arange(batch) % len(value)] for key, value in part.inputs.items()}
    ways: dict[str, Callable[[], object]] = {
        "eager": lambda: part.module(*given.values()),
        **{kind: (lambda found=found: found(given)) for kind, found in programs.items()},
    }
    with torch.no_grad():
        apart = (ways["float32"]()["x0"] - ways["eager"]()).abs().max().item()  # type: ignore[index, operator]
        spent = turns(ways, rounds)
    eager, plain, small = (1e3 * statistics.median(spent[kind]) for kind in ("eager", "float32", "int8"))
    found = {"net": name, "batch": batch, "eager_ms": eager, "onnx_ms": plain, "int8_ms": small}
    found |= {"onnx_speedup": eager / plain, "int8_speedup": plain / small, "difference": apart}
    print(
        f"{name:8} batch {batch:2}: eager {eager:8.2f} ms, onnx {plain:8.2f} ({eager / plain:.2f} x), "
        f"int8 {small:8.2f} ({plain / small:.2f} x of onnx), difference {apart:.1e}",
        flush=True,
    )
    return found


def turns(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each way, round by round, each round long enough to be measured."""
    repeats = {kind: repeated(way) for kind, way in ways.items()}
    spent: dict[str, list[float]] = {kind: [] for kind in ways}
    for _ in range(rounds):
        for kind, way in ways.items():
            began = time.process_time()
            for _ in range(repeats[kind]):
                way()
            spent[kind].append((time.process_time() - began) / repeats[kind])
    return spent


def repeated(way: Callable[[], object], least: float = 0.03) -> int:
    """How often a way must be gone to take `least` CPU seconds."""
    way()
    began = time.process_time()
    way()
    return max(1, round(least / max(time.process_time() - began, 1e-6)))


def made(name: str) -> Generator:
    """The net of an experiment, random weights, its tokenizer learned from a few words."""
    generator: Generator = build(generator_spec(load([f"experiment={name}"])))
    torch.manual_seed(0)
    with torch.no_grad():
        for value in generator.parameters():
            value.copy_(torch.randn(value.shape) / max(4.0, value[0].numel() ** 0.5))
    learn(generator, ["a red circle", "a blue star"])
    return generator.eval().requires_grad_(False)


def learn(generator: Generator, captions: Sequence[str]) -> None:
    match generator.conditioner:
        case TextConditioner() as text:
            text.fit(list(captions))


if __name__ == "__main__":
    main()
