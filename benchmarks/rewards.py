"""Learning from rewards, against the same wall time of what the model was trained by before.

    python benchmarks/rewards.py shapes        text alignment by an exact reader: grpo against more denoising
    python benchmarks/rewards.py digits        the discriminator's reward: grpo against more training
    python benchmarks/rewards.py beta          how far it may be climbed: β swept, the discriminator frozen
    python benchmarks/rewards.py efficiency    reward against wall time: ddpo, grpo, nft, draft from one start

    --seeds 0,1,2    --data FOLDER    --out FOLDER    --quick: a minute, for the machinery alone

One process at a time with one thread each, but for `efficiency`, whose methods run at once. Every arm of a
seed begins with the same weights; the control trains on by the start's own objective for as many images as
fit into the reward run's wall time, its speed measured just before. Scores are on test, n and seeds beside
them; gains are paired by seed, 95 % t-intervals.
Results go to OUT/rewards_NAME.json, the table to the screen.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adversarial_gain import interval

from lmsd.data.builders.shapes import class_names

LMSD = [sys.executable, "-m", "lmsd.cli"]
HELD_OUT_PAIRS = ("red circle", "blue square", "green triangle")
BETAS = (0.0, 0.1, 1.0, 10.0)
CURVES = {
    "reward": "generator/reward",
    "kl": "generator/kl",
    "diversity": "generator/diversity",
    "fd": "val/fd[",
}
SPEED = 0.1  # share of a run that measures a speed
SHAPES_BASE = [
    "experiment=shapes", "objective=denoising", "times@objective.times=logit_normal",
    "objective.weighting=min_snr", "objective.caption_dropout=0.0", "sampler=ancestral", "generator.z_dim=0",
    "net.width=256", "net.depth=2", "batch_size=64", "optim.generator.lr=2e-3", "optim.warmup_images=6_400",
    "optim.clip.generator=null", "optim.decay=cosine", "evaluate.n=1000", "threads=1",
    "evaluate.neighbors=false",
]  # fmt: skip
"""A small net, so that a run takes a minute or two; its captions are wrong in a quarter of the pictures."""


def lmsd(verb: str, words: Sequence[str]) -> None:
    """One command; its output is shown where it fails."""
    done = subprocess.run([*LMSD, verb, *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"lmsd {verb} {' '.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def train(folder: Path, words: Sequence[str], *, scored: bool = False) -> float:
    """Train one run anew and return its wall time in seconds."""
    if folder.exists():
        shutil.rmtree(folder)
    quiet = [] if scored else ["evaluate.n=0"]
    lmsd("train", [*words, *quiet, f"run_dir={folder}", "checkpoint_every=1000000000"])
    status = json.loads((folder / "status.json").read_text())
    print(f"  {folder.name}: {status['images']:,} images in {status['seconds']:.0f} s", flush=True)
    return float(status["seconds"])


def score(folder: Path, *, n: int) -> dict[str, Any]:
    """FD and right prompts on test, three sampling seeds."""
    lmsd("evaluate", [f"run={folder}", "split=test", "seeds=[0,1,2]", f"n={n}"])
    record: dict[str, Any] = json.loads((folder / "eval" / "test" / "metrics.json").read_text())
    kept = {name.split("[")[0]: found for name, found in record["scores"].items() if "value" in found}
    scores = {name: found["value"] for name, found in kept.items()}
    interval = {name: [kept[name]["low"], kept[name]["high"]] for name in ("fd", "right") if name in kept}
    unseen = [record.get("slices", {}).get(str(class_names().index(pair))) for pair in HELD_OUT_PAIRS]
    if all(part and "right" in part for part in unseen):
        scores["unseen"] = statistics.mean(part["right"]["value"] for part in unseen)
    return {"n": record["n"], "extractor": record["extractor"], "interval": interval, **scores}


def curve(folder: Path, name: str) -> list[tuple[float, float]]:
    """(images, value) of a metric of a run; a name that ends in [ stands for any extractor."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = []
    for row in rows:
        keys = [key for key in row if key == name or (name.endswith("[") and key.startswith(name))]
        found += [(row["images"], row[key]) for key in keys if not key.endswith(("/low", "/high"))]
    return found


def timed(folder: Path, name: str) -> list[tuple[float, float]]:
    """(seconds since the first line, value) of a metric of a run."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    began = rows[0]["time"]
    return [(row["time"] - began, row[name]) for row in rows if name in row]


def matched(
    folder: Path, words: Sequence[str], *, seconds: float, images: int, scored: bool = False
) -> float:
    """Train for a wall time: a short run measures the speed, the long one has the images that fit.

    scored: the long one is also scored on val as it goes, which its wall time has no part of.
    """
    short = max(1_280, round(SPEED * images))
    spent = train(folder, [*words, f"images={short}"])
    fitting = max(short, round(short * seconds / spent))
    return train(folder, [*words, f"images={fitting}"], scored=scored)


def shapes(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Start, grpo, and more denoising; the same on pairs of color and shape that training never saw."""
    data = options.data or options.out / "shapes"
    if not data.exists():
        counts = ["train_count=400", "val_count=200", "test_count=300"] if options.quick else []
        holdout = f"holdout=[{','.join(HELD_OUT_PAIRS)}]"
        lmsd("data", ["build", "shapes", f"out={data}", "image_size=16", "mismatch=0.25", holdout, *counts])
    scale = 0.01 if options.quick else 1.0
    rows = []
    for seed in options.seeds:
        common, place = [f"data.shards={data}", f"seed={seed}"], options.out / f"shapes-{seed}"
        start, reward, more = (place.with_name(f"{place.name}-{arm}") for arm in ("start", "grpo", "more"))
        base = [*SHAPES_BASE, *common, f"evaluate.every={round(40_000 * scale)}"]
        train(start, [*base, f"images={round(160_000 * scale)}"], scored=not options.quick)
        size = ["batch_size=64"] if options.quick else []
        words = ["experiment=shapes_reward", *common, f"init_from={start}@ema", "threads=1", *size]
        seconds = train(reward, [*words, f"images={round(150_000 * scale)}"])
        held = [*base, f"init_from={start}@ema", "optim.warmup_images=2_000"]
        spent = matched(more, held, seconds=seconds, images=round(160_000 * scale), scored=not options.quick)
        arms = {name: score(folder, n=options.n) for name, folder in
                (("start", start), ("grpo", reward), ("more", more))}  # fmt: skip
        curves = {f"val {name}": curve(folder, "val/right") for name, folder in
                  (("start", start), ("more", more)) if not options.quick}  # fmt: skip
        rows.append({"seed": seed, "seconds": {"grpo": seconds, "more": spent}, **arms, **curves})
    return rows


def digits(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The reward of a discriminator that learned on a denoiser, kept up to date, against more training."""
    scale = 0.01 if options.quick else 1.0
    rows = []
    for seed in options.seeds:
        place, common, weights = digits_start(options, seed, images=round(400_000 * scale))
        row: dict[str, Any] = {"seed": seed, "start": score(at(place, "start"), n=options.n), "seconds": {}}
        folder = at(place, "grpo")
        words = ["experiment=digits_reward", *common, weights, f"images={round(102_400 * scale)}"]
        row["seconds"]["grpo"] = train(folder, words)
        row["grpo"] = score(folder, n=options.n)
        # more: of the same denoising; game: the discriminator's gradient in place of its reward, one seed
        for name, warmup in (("more", 1), ("game", 0))[: 2 if seed == options.seeds[0] else 1]:
            words = ["experiment=digits", *common, weights, f"objective.warmup={warmup}"]
            words += ["objective.head_start=0"]
            spent = matched(at(place, name), words, seconds=row["seconds"]["grpo"], images=200_000)
            row["seconds"][name], row[name] = spent, score(at(place, name), n=options.n)
        rows.append(row)
    return rows


def beta(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A frozen discriminator's reward at several β, and one kept up to date at β = 1, from a short start."""
    scale = 0.01 if options.quick else 1.0
    rows = []
    for seed in options.seeds:
        place, common, weights = digits_start(options, seed, images=round(160_000 * scale))
        row: dict[str, Any] = {"seed": seed, "start": score(at(place, "start"), n=options.n), "seconds": {}}
        words = ["experiment=digits_reward", *common, weights, f"images={round(76_800 * scale)}"]
        words += [f"evaluate.every={round(25_600 * scale)}", "evaluate.stop_hacking=0"]
        arms = {
            f"frozen, β={b:g}": ["objective.refresh=null", f"objective.reference.weight={b}"] for b in BETAS
        }
        for name, extra in {**arms, "kept up to date, β=1": []}.items():
            folder = at(place, name.split(",")[0].replace(" ", "-") + name.rpartition("=")[2])
            row["seconds"][name] = train(folder, [*words, *extra], scored=not options.quick)
            row[name] = score(folder, n=options.n)
            curves = {} if options.quick else CURVES
            row[f"curve {name}"] = {short: curve(folder, long) for short, long in curves.items()}
        rows.append(row)
    if not options.quick:
        picture(rows[0], options.out / "rewards_beta.png")
    return rows


def digits_start(options: argparse.Namespace, seed: int, *, images: int) -> tuple[Path, list[str], str]:
    """Train the start: the generator by denoising alone, then the discriminator on what it does.

    Returns the folders' common path, the words of all arms, and the words that load the start's weights.
    """
    data = options.data or options.out / "digits"
    if not data.exists():
        lmsd("data", ["build", "digits", f"out={data}"])
    place = options.out / f"{options.name}-{seed}"
    start, common = at(place, "start"), [f"data.shards={data}", f"seed={seed}", "sampler=ancestral"]
    own = ["experiment=digits", *common, "objective.warmup=0.85", "objective.head_start=0.15"]
    train(start, [*own, f"images={images}"])
    return place, common, f"init_from=[{start}@ema,{start}:discriminator]"


def at(place: Path, arm: str) -> Path:
    """The folder of an arm."""
    return place.with_name(f"{place.name}-{arm}")


def picture(row: dict[str, Any], path: Path) -> None:
    """FD on val, the reward above its first value and the diversity over images, a line for each arm."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    titles = {"fd": "FD on val", "reward": "reward above the first, nats", "diversity": "diversity in groups"}
    for panel, (name, title) in zip(panels, titles.items(), strict=True):
        for arm in (key for key in row if key.startswith("curve ")):
            points = row[arm][name]
            first, label = points[0][1] if name == "reward" else 0.0, arm.removeprefix("curve ")
            if name == "reward" and "frozen" not in label:
                continue  # a judge that is kept up to date has another zero after every refresh
            x, y = zip(*points, strict=True)
            style = "-" if "frozen" in label else "--"
            panel.plot([n / 1_000 for n in x], [value - first for value in y], style, label=label)
        panel.set(title=title, xlabel="thousand images")
    panels[0].set_yscale("log")
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def efficiency(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Sharpness of digits, which every method can climb, and what FD it costs: all at once, side by side."""
    data = options.data or options.out / "digits"
    if not data.exists():
        lmsd("data", ["build", "digits", f"out={data}"])
    scale = 0.01 if options.quick else 1.0
    rows = []
    for seed in options.seeds:
        common, place = [f"data.shards={data}", f"seed={seed}"], options.out / f"efficiency-{seed}"
        start = place.with_name(f"{place.name}-start")
        flow = ["experiment=digits", *common, "objective=denoising", "schedule=flow", "steps=8",
                "generator.z_dim=0", "threads=1", "optim.generator.lr=1e-3"]  # fmt: skip
        train(start, [*flow, f"images={round(200_000 * scale)}"])
        row: dict[str, Any] = {"seed": seed, "start": score(start, n=options.n)}
        arms = {
            "ddpo": ["objective=ddpo", "sampler=ancestral", "objective.policy.last_std=0.03"],
            "grpo": ["objective=grpo", "sampler=ancestral", "objective.policy.last_std=0.03"],
            "nft": ["objective=nft", "sampler=ddim"],
            "draft": ["objective=draft", "sampler=ddim"],
        }
        own = [word for word in flow if not word.startswith(("objective=", "optim."))]
        own += ["reward@objective.reward=sharpness", f"init_from={start}@ema", "batch_size=128"]
        own += ["log_every=1280", "evaluate.stop_hacking=0", "images=100_000_000"]
        folders = {name: at(place, name) for name in arms}
        together(
            {name: [*own, *arms[name]] for name in arms}, folders, 10 if options.quick else options.seconds
        )
        for name, folder in folders.items():
            row[name] = score(folder, n=options.n) | {"curve": timed(folder, "generator/reward")}
        rows.append(row)
    return rows


def together(arms: dict[str, list[str]], folders: dict[str, Path], seconds: float) -> None:
    """Train all arms at once, each in its own process, and stop all of them after so many seconds."""
    common = ["evaluate.n=0", "checkpoint_every=1000000000"]
    for folder in folders.values():
        shutil.rmtree(folder, ignore_errors=True)
    runs = [
        subprocess.Popen(
            [*LMSD, "train", *words, *common, f"run_dir={folders[name]}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for name, words in arms.items()
    ]
    time.sleep(seconds)
    for run in runs:
        run.terminate()  # each writes a checkpoint and ends with 143
    codes = [run.wait() for run in runs]
    if set(codes) != {143}:
        raise SystemExit(f"the arms {list(arms)} ended with {codes} where 143 was expected")


def table(name: str, rows: Sequence[dict[str, Any]]) -> str:
    """The arms' FD and right prompts by seed, and the paired gains over the control."""
    arms = [key for key, value in rows[0].items() if isinstance(value, dict) and "extractor" in value]
    everywhere = [arm for arm in arms if all(arm in row for row in rows)]
    first = rows[0][arms[0]]
    lines = [f"{name}: test, n={first['n']}, three sampling seeds, {first['extractor']}", ""]
    lines += [
        "| seed | " + " | ".join(f"{arm}: FD, right" for arm in arms) + " |",
        "|---" * (len(arms) + 1) + "|",
    ]
    for row in rows:
        cells = [
            f"{row[arm]['fd']:.3f}, {row[arm].get('right', float('nan')):.3f}" if arm in row else "–"
            for arm in arms
        ]
        lines.append(f"| {row['seed']} | " + " | ".join(cells) + " |")
    control = "more" if "more" in arms else "start"
    for arm in everywhere:
        if arm == control or len(rows) < 2:
            continue
        for key in ("fd", "right"):
            gains = [row[arm][key] - row[control][key] for row in rows]
            half = interval(gains)
            lines.append(f"{arm} − {control}, {key}: {statistics.mean(gains):+.4f} ± {half:.4f}")
    for row in rows:
        for arm in everywhere:
            if "curve" in row[arm]:
                seconds, reward = row[arm]["curve"][-1]
                lines.append(f"seed {row['seed']} {arm}: reward {reward:.3f} after {seconds:.0f} s")
    return "\n".join(lines)


def main() -> int:
    """Run one of the four."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name", choices=("shapes", "digits", "beta", "efficiency"))
    parser.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"))
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60.0, help="wall time of the arms (efficiency)")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.quick:
        options.seeds, options.n = options.seeds[:1], min(options.n, 200)
    rows = {"shapes": shapes, "digits": digits, "beta": beta, "efficiency": efficiency}[options.name](options)
    print(table(options.name, rows))
    chosen = {name: getattr(options, name) for name in ("name", "seeds", "n", "seconds", "quick")}
    record = {"options": chosen, "rows": rows}
    (options.out / f"rewards_{options.name}.json").write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
