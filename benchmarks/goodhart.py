"""Goodhart's law on purpose: a generator trained on the Fréchet distance of one net's features.

    python benchmarks/goodhart.py            digits, three seeds
    python benchmarks/goodhart.py 1          one seed

A denoiser is trained, then made one-step by `objective=fd_loss` on the features of the classifier that its
runs are scored with. After every so many images the student, and the denoiser at 16 steps beside it, are
scored as FID is published: images for the captions of the test split against the training images, over what
the test images themselves reach (1: the floor of real images), in three families of features, with recall on
test. At the end both are evaluated on test by `lmsd evaluate`, and the verdict of the report compares them.
Results go to benchmarks/results/goodhart.json, the plot to docs/goodhart.png.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lmsd
from lmsd.cli.build.extractors import find_or_train
from lmsd.data.shardset import ShardSet
from lmsd.evaluation.families import families_of, verdict_of
from lmsd.features.base import FeatureExtractor
from lmsd.features.random_conv import RandomExtractor
from lmsd.metrics.frechet import frechet_distance
from lmsd.metrics.manifold import manifold
from lmsd.rng import Rng
from lmsd.sampling import Tau

HERE = Path(__file__).resolve().parent
LMSD = [sys.executable, "-m", "lmsd.cli"]
TEACHER, STUDENT, EVERY, DRAWS = 100_000, 300_000, 50_000, 2
ROWS = 900
"""Training images that everything is compared with."""


def main(arguments: list[str]) -> int:
    """Train, score and plot so many seeds; exit code 1 if nothing was gamed, or the verdict fell for it."""
    seeds = int(arguments[0]) if arguments else 3
    with tempfile.TemporaryDirectory() as place:
        shards = Path(place) / "digits"
        called("data", "build", "digits", f"out={shards}")
        data = ShardSet(str(shards), image_size=8, channels=1)
        extractor, classifier = find_or_train(data, images=25_000)
        judges = [extractor, find_or_train(data, kind="lmsd-ssl")[0], RandomExtractor(1)]
        rows = [course(seed, Path(place), shards, classifier, data, judges) for seed in range(seeds)]
    record = {"n": len(data.split_set("test")), "train": ROWS, "draws": DRAWS, "rows": rows}
    (HERE / "results" / "goodhart.json").write_text(json.dumps(record, indent=1) + "\n")
    text, gamed = table(rows)
    print(text)
    plot(rows, HERE.parent / "docs" / "goodhart.png")
    return 0 if gamed else 1


def called(*words: str) -> None:
    subprocess.run([*LMSD, *words], check=True, capture_output=True)


def course(
    seed: int, place: Path, shards: Path, classifier: Path, data: ShardSet, judges: list[FeatureExtractor]
) -> dict[str, Any]:
    """One seed: teacher, student, scores along the way, the verdict at the end."""
    own = ["experiment=digits", f"data.shards={shards}", f"seed={seed}", "evaluate.n=0", "log_every=5000"]
    own += ["schedule=flow", "optim.decay=cosine"]
    teacher, student = place / f"teacher-{seed}", place / f"student-{seed}"
    called(
        "train", *own, "objective=denoising", f"images={TEACHER}", f"run_dir={teacher}",
        "optim.generator.lr=1e-3", "steps=16", "checkpoint_every=1000000000",
    )  # fmt: skip
    called(
        "train", *own, "objective=fd_loss", f"objective.path={classifier}", f"init_from={teacher}@ema",
        f"images={STUDENT}", f"run_dir={student}", "optim.generator.lr=2e-4", f"checkpoint_every={EVERY}",
        "batch_size=128", "keep=100",
    )  # fmt: skip
    points = [
        {"images": 0, **scored(teacher, 16, data, judges)},
        {"images": 0, **scored(teacher, 1, data, judges)},
    ]
    for path in sorted((student / "checkpoints").glob("step_*.ckpt")):
        point = {"images": int(path.stem.split("_")[1]), **scored(path, 1, data, judges)}
        print(json.dumps({"seed": seed, **point}), flush=True)
        points.append(point)
    records = {}
    for name, folder in (("student", student), ("teacher", teacher)):
        called("evaluate", f"run={folder}", "split=test", "seeds=[0,1,2]")
        records[name] = json.loads((folder / "eval" / "test" / "metrics.json").read_text())
    return {
        "seed": seed,
        "teacher": points[0],
        "student": points[1:],
        "verdict": verdict_of(records["student"], records["teacher"]),
        "records": {name: kept(record) for name, record in records.items()},
    }


def kept(record: dict[str, Any]) -> dict[str, Any]:
    """What the verdict is made of."""
    names = [f"{kind}[{family}]" for family in families_of(record) for kind in ("fd", "recall", "sw_ratio")]
    return {
        "extractor": record["extractor"],
        "scores": {name: record["scores"][name] for name in names if name in record["scores"]},
    }


@torch.no_grad()
def scored(run: Path, steps: int, data: ShardSet, judges: list[FeatureExtractor]) -> dict[str, Any]:
    """FD to training images over that of test images, and recall, in every family; means over draws."""
    train, test = data.split_set("train"), data.split_set("test")
    known, rows = train.images(range(ROWS)), range(len(test))
    real, model = test.images(rows), lmsd.load(run)
    batch = model.batch(test.captions(rows))
    draw = model.generation(sampler=Tau(0.0), steps=steps)
    fakes = [draw(batch, Rng(seed, batch.position)) for seed in range(DRAWS)]
    found: dict[str, Any] = {}
    for judge in judges:
        of_train, of_test = judge(known)[0], judge(real)[0]
        floor = frechet_distance(of_test, of_train)
        made: list[Tensor] = [judge(fake)[0] for fake in fakes]
        found[judge.kind] = {
            "fd": statistics.fmean(frechet_distance(each, of_train) for each in made) / floor,
            "recall": statistics.fmean(manifold(each, of_test).recall for each in made),
        }
    return found


def table(rows: list[dict[str, Any]]) -> tuple[str, bool]:
    """The comparison in Markdown; whether one distance alone was gamed, and no verdict followed."""
    kinds = [name for name in rows[0]["teacher"] if name != "images"]
    lines = [
        "| seed | who | " + " | ".join(f"FD / floor, {kind} | recall" for kind in kinds) + " | verdict |"
    ]
    lines.append("|---" * (3 + 2 * len(kinds)) + "|")
    gamed = True
    for row in rows:
        last = row["student"][-1]
        for who, point in (("denoiser, 16 steps", row["teacher"]), ("FD-loss, 1 step", last)):
            cells = " | ".join(f"{point[kind]['fd']:.2f} | {point[kind]['recall']:.2f}" for kind in kinds)
            verdict = row["verdict"] if point is last else ""
            lines.append(f"| {row['seed']} | {who} | {cells} | {verdict} |")
        others = all(last[kind]["fd"] > row["teacher"][kind]["fd"] for kind in kinds[1:])
        narrower = all(last[kind]["recall"] <= row["teacher"][kind]["recall"] for kind in kinds)
        gamed &= last[kinds[0]]["fd"] < 1 and others and narrower and not row["verdict"].startswith("better")
    return "\n".join(lines), gamed


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """FD over the floor by images, a line a family and seed, with the denoiser dashed; recall beside it."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    kinds = [name for name in rows[0]["teacher"] if name != "images"]
    for number, kind in enumerate(kinds):
        for index, row in enumerate(rows):
            x = [point["images"] / 1000 for point in row["student"]]
            for axis, score in ((left, "fd"), (right, "recall")):
                label = kind + (" (trained on)" if not number else "") if not index else None
                axis.plot(
                    x, [point[kind][score] for point in row["student"]], color=f"C{number}", label=label
                )
                axis.axhline(row["teacher"][kind][score], color=f"C{number}", linestyle=":", linewidth=0.8)
    left.axhline(1.0, color="black", linewidth=0.8)
    left.set(
        yscale="log", xlabel="thousand images of FD-loss", ylabel="FD to train, over that of real test images"
    )
    right.set(xlabel="thousand images of FD-loss", ylabel="recall on test", ylim=(0, 1))
    left.legend()
    figure.suptitle("FD-loss on the classifier's features; dotted: the denoiser at 16 steps")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
