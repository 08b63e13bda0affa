"""Does pruning pay? A cut net against the uncut one, and against one of its size trained for the same time.

    python benchmarks/pruning.py                    digits, 30 % of the FLOPs, one seed
    python benchmarks/pruning.py digits 0.3 3       experiment (digits or shapes), share, seeds

For each seed a run is trained, cut by `lmsd compress` with and without the adversary, and a net of narrower
MLPs, of as many FLOPs, is trained from scratch for the CPU time of the run and of the cut one's learning
together. All are scored on test (three sampling seeds, all families), each against the uncut run by the
paired interval of its FD: equal means an upper end below 5 % of it. Images a second are those of sampling on
one thread, in turns, the median of nine. Results go to benchmarks/results/pruning_EXPERIMENT.json; the table
is printed whatever it shows.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import lmsd
from lmsd.evaluation.promotion import difference
from lmsd.evaluation.records import newest_records
from lmsd.sampling import Model
from lmsd.spec import build
from lmsd.tuning.pruning import flops, probe
from lmsd.types import Batch

HERE = Path(__file__).resolve().parent
LMSD = [sys.executable, "-m", "lmsd.cli"]
BASE, LEARN, ROUNDS, BATCH = 100_000, 30_000, 9, 64
SIZES = {"digits": [], "shapes": ["image_size=16"]}
EQUAL = 0.05


def main(arguments: list[str]) -> int:
    """Train, cut, train the control, score; one table."""
    experiment, share, seeds = (*arguments, *("digits", "0.3", "1")[len(arguments) :])
    if experiment not in SIZES:
        raise SystemExit(f"{experiment} is none of {', '.join(SIZES)}")
    with tempfile.TemporaryDirectory() as place:
        shards = Path(place) / "data"
        called("data", "build", experiment, f"out={shards}", *SIZES[experiment])
        rows = [one(experiment, float(share), seed, Path(place), shards) for seed in range(int(seeds))]
    record = {"experiment": experiment, "share": float(share), "base": BASE, "learn": LEARN, "rows": rows}
    path = HERE / "results" / f"pruning_{experiment}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(table(rows))
    return 0


def called(*words: str) -> float:
    """Run a verb on one thread; the CPU seconds that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [*LMSD, *words], check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def one(experiment: str, share: float, seed: int, place: Path, shards: Path) -> dict[str, Any]:
    """One seed: the four runs, their scores and speeds."""
    runs = {name: place / f"{name}-{seed}" for name in ("uncut", "cut", "imitation alone", "from scratch")}
    own = [f"experiment={experiment}", f"data.shards={shards}", f"seed={seed}", "evaluate.n=0", "threads=1"]
    cost = {"uncut": called("train", *own, f"images={BASE}", f"run_dir={runs['uncut']}")}
    common = ["compress", f"run={runs['uncut']}", f"prune={share}", f"images={LEARN}"]
    for name, more in (("cut", []), ("imitation alone", ["adversary=false"])):
        cost[name] = cost["uncut"] + called(*common, f"to={runs[name]}", *more)
    hidden = narrower(lmsd.load(runs["uncut"]), share)
    own = [*own, f"net.hidden={hidden}"]
    begin = called("train", *own, "images=64", f"run_dir={place / f'begin-{seed}'}")
    tried = called("train", *own, f"images={BASE // 5}", f"run_dir={place / f'tried-{seed}'}")
    images = int((cost["cut"] - begin) / (tried - begin) * BASE / 5)
    cost["from scratch"] = called("train", *own, f"images={images}", f"run_dir={runs['from scratch']}")
    for path in runs.values():
        called("evaluate", f"run={path}", "split=test", "seeds=[0,1,2]")
    models = {name: lmsd.load(path) for name, path in runs.items()}
    speed = speeds(models)
    records = {name: newest_records(path)["test"] for name, path in runs.items()}
    return {
        name: {
            "cpu_seconds": round(cost[name], 1),
            "parameters": sum(p.numel() for p in model.generator.net.parameters()),  # type: ignore[attr-defined]
            "flops": flops(model.generator, seen(model)),
            "images_a_second": speed[name],
            "n": records[name]["n"],
            **scored(records[name], records["uncut"]),
        }
        for name, model in models.items()
    }


def seen(model: Model) -> Any:
    """What FLOPs are counted on; black images of the model's own condition."""
    conditioner = model.generator.conditioner
    text = ["a"] * 2 if conditioner.reads == "text" else None
    label = torch.zeros(2, dtype=torch.int64) if conditioner.reads == "label" else None
    batch = Batch(
        torch.full((2, *model.generator.image_shape), -1.0), torch.arange(2), text=text, label=label
    )
    return probe(model.generator, model.generator.encode(batch), torch.tensor([0.5, 0.5]))


def narrower(model: Model, share: float) -> float:
    """The inner width over the outer one at which a new net costs `share` less FLOPs, or a little less."""
    goal = (1 - share) * flops(model.generator, seen(model))
    for hundredths in range(100, 0, -1):
        spec = {**model.spec, "net": {**model.spec["net"], "hidden": hundredths / 100}}
        if flops(build(spec).eval().requires_grad_(False), seen(model)) <= goal:
            return hundredths / 100
    raise SystemExit(f"no inner width saves {share:.0%} of the FLOPs")


def speeds(models: Mapping[str, Model]) -> dict[str, float]:
    """Images a second of sampling, in turns; the median."""
    torch.set_num_threads(1)
    prompts = ["a"] * BATCH
    found: dict[str, list[float]] = {name: [] for name in models}
    for number in range(ROUNDS + 1):
        for name, model in models.items():
            began = time.perf_counter()
            model.sample(prompts, seed=number)
            if number:
                found[name].append(BATCH / (time.perf_counter() - began))
    return {name: round(statistics.median(values), 1) for name, values in found.items()}


def scored(record: Any, uncut: Any) -> dict[str, Any]:
    """FD of every family with its interval, and how far it is from the uncut run's, in shares of that."""
    rows: dict[str, Any] = {}
    for name, score in record["scores"].items():
        if name.startswith(("fd[", "right")) and not name.startswith("right_"):
            apart = difference(record, uncut, name)
            scale = abs(uncut["scores"][name]["value"])
            ends = None if apart is None or not scale else [apart.low / scale, apart.high / scale]
            rows[name] = {
                "value": score["value"],
                "low": score["low"],
                "high": score["high"],
                "worse_by": ends,
            }
    return {"scores": rows}


def table(rows: list[dict[str, Any]]) -> str:
    """A line a run and seed."""
    lines = []
    for seed, row in enumerate(rows):
        for name, each in row.items():
            said = "; ".join(
                f"{score} {told['value']:.3g} [{told['low']:.3g}, {told['high']:.3g}]"
                + (
                    ""
                    if name == "uncut" or told["worse_by"] is None
                    else f" ({100 * told['worse_by'][0]:+.0f} to {100 * told['worse_by'][1]:+.0f} %"
                    + (", equal)" if told["worse_by"][1] < EQUAL else ")")
                )
                for score, told in each["scores"].items()
            )
            lines.append(
                f"seed {seed}  {name:16} {each['cpu_seconds']:7.0f} s  {each['flops'] / 1e6:7.3f} MFLOP  "
                f"{each['images_a_second']:8.0f} images/s  n={each['n']}  {said}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
