"""Whether two trees of the code train to the same bits: one row a run, exit code 1 where any differs.

    python benchmarks/same.py OLD [NEW] [--only digits,shapes] [--except kid,is] [--fresh]

OLD and NEW (default: this tree) are commits or folders. Of each, every experiment of configs/experiment is
run by its own command line in a process of its own, on one thread, cut so that each of its phases plays 20
updates or more (warm start, head start, game; for rewards 20 updates with a refresh) and is scored once; then
every other objective on digits, for some updates, not scored.
Compared bit by bit: every number of metrics.jsonl (losses, gradient norms, rates, val scores), the scores
with their parts and intervals, and digests of all weights, averages and optimizer states, by role. Names of
tensors and the checkpoint's layout may differ.

What a tree gives is kept in the cache folder (LMSD_CACHE, or ~/.cache/lmsd) under digests of its files and
of the run, so that it is run once; --fresh runs both again. digits and shapes are built by each tree,
cifar10 and emoji come from LMSD_TEST_DATA and are left out, with a word, without it.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
RENAMED: dict[str, str] = {}
"""Options of OLD by their names in NEW, where they have another ("" leaves one out)."""

SHARED = [
    "threads=1",
    "accelerator=cpu",
    "checkpoint_every=1000000",
    "evaluate.every=1000000",
    "evaluate.at_start=false",
    "evaluate.n=200",
    "evaluate.grid=4",
    "evaluate.extractor.images=1000",
]
PHASES = ["objective.warmup=0.34", "objective.head_start=0.33", "optim.warmup_images=160"]
NARROW = ["generator.z_dim=0", "net.width=256", "net.depth=2"]


def cut(batch: int, batches: int) -> list[str]:
    """So many batches of this size, a line of metrics after each."""
    return [f"batch_size={batch}", f"images={batch * batches}", f"log_every={batch}"]


RUNS: dict[str, list[str]] = {
    "digits": ["experiment=digits", "data.shards=DIGITS", *cut(64, 66), *PHASES],
    "shapes": ["experiment=shapes", "data.shards=SHAPES", *cut(64, 66), *PHASES],
    "cifar10": [  # the recipe of version 0.2.0, word for word
        *("experiment=cifar10", "objective=lmsd", "recipe=lmsd_cifar10", "data.shards=CIFAR10"),
        *(
            "net=unet_pooled",
            "net.widths=[48,96]",
            "net.blocks=1",
            "net.patch=4",
            "generator.prediction=velocity",
        ),
        *("generator.z_dim=32", "discriminator.trunk.widths=[64,128]", "discriminator.trunk.patch=4"),
        *("objective.warm.weighting=none", "objective.warm_rate=[20.0,1.0]"),
        *("evaluate.guidance=6.0", *cut(8, 66), *PHASES),
    ],
    "emoji": ["experiment=emoji", "data.shards=EMOJI", *cut(8, 66), *PHASES, "rollback.collapsed=0"],
    "digits_reward": [
        *("experiment=digits_reward", "data.shards=DIGITS", "init_from=[digits@ema,digits:discriminator]"),
        *cut(128, 24),
    ],
    "denoising": [
        *("experiment=shapes", "objective=denoising", "sampler=ancestral", "data.shards=SHAPES"),
        *(*NARROW, *cut(64, 24), "optim.warmup_images=160"),
    ],
    "shapes_reward": [
        *("experiment=shapes_reward", "data.shards=SHAPES", "init_from=denoising@ema", *cut(128, 24)),
    ],
}
"""The runs by name; one may begin from the weights of another by its name."""

RUNS |= {
    name: ["experiment=digits", f"objective={name}", "data.shards=DIGITS", *cut(64, 20), "evaluate.n=0"]
    for name in ("cgan", "ddgan", "r3gan")
}
RUNS |= {
    name: [
        *("experiment=digits", f"objective={name}", "data.shards=DIGITS", "init_from=digits@ema"),
        *("reward@objective.reward=sharpness", "objective.group=8", "sampler=ancestral"),
        *(*cut(64, 12), "evaluate.n=0"),
    ]
    for name in ("ddpo", "grpo", "nft", "dpo", "draft")
}
NEEDS = {
    "digits_reward": "digits",
    "shapes_reward": "denoising",
    **dict.fromkeys(("ddpo", "grpo", "nft", "dpo", "draft"), "digits"),
}
BUILT = {
    "DIGITS": ["digits"],
    "SHAPES": ["shapes", "image_size=16", "train_count=2000", "val_count=300", "test_count=100"],
}
GIVEN = {"CIFAR10": "cifar10/{train,val}-000000.tar", "EMOJI": "emoji/{train-000000,val-000000}.tar"}
TIMES = ("time", "seconds", "per_second", "memory", "flops", "mfu", "wait")


class Tree:
    """One state of the code, unpacked, and what it gives."""

    def __init__(self, name: str, cache: Path) -> None:
        self.name = name
        self.folder = Path(name) if (Path(name) / "src" / "lmsd").is_dir() else unpacked(name, cache)
        self.folder = self.folder.resolve()
        self.kept = cache / "records" / digest_of(self.folder)
        self.work = self.kept / "work"

    def command(self, words: Sequence[str]) -> str:
        """Run one command of this tree; what it said on stderr where it failed, else nothing."""
        paths = {"PYTHONPATH": str(self.folder / "src"), "LMSD_CACHE": str(self.work / "cache")}
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("LMSD_", "WANDB_", "SLURM_")) and name not in ("RANK", "LOCAL_RANK")
        }
        environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "disabled", **paths}
        self.work.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-m", "lmsd.cli", *words],
            cwd=self.work,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return "" if done.returncode == 0 else (done.stderr.strip() or f"exit code {done.returncode}")[-1000:]

    def record(self, run: str, *, renamed: Mapping[str, str]) -> dict[str, Any]:
        """What a run gave, kept or made now; {"failed": why} where it did not end."""
        words = (RUNS[run], RUNS.get(NEEDS.get(run, "")), SHARED, BUILT, GIVEN)
        file = self.kept / f"{run}-{hashlib.sha256(repr(words).encode()).hexdigest()[:8]}.json"
        if file.is_file():
            found: dict[str, Any] = json.loads(file.read_text())
            return found
        if run in NEEDS:
            self.record(NEEDS[run], renamed=renamed)
        words = [self._translated(word, renamed) for word in [*SHARED, *RUNS[run], f"run_dir={run}"]]
        words = [word for word in words if not word.startswith("=")]
        shutil.rmtree(self.work / run, ignore_errors=True)
        failed = self._data() or self.command(["train", *words])
        if failed:
            return {"failed": failed}
        made = {
            "lines": list(lines(self.work / run)),
            "scores": scores(self.work / run),
            **weights(self.work / run),
        }
        file.write_text(json.dumps(made))
        return made

    def _translated(self, word: str, renamed: Mapping[str, str]) -> str:
        key, _, value = word.partition("=")
        for mark, path in GIVEN.items():
            value = value.replace(mark, f"'{os.environ.get('LMSD_TEST_DATA', '')}/data/{path}'")
        return f"{renamed.get(key, key)}={value}"

    def _data(self) -> str:
        for mark, words in BUILT.items():
            if not (self.work / mark).is_dir():
                failed = self.command(["data", "build", *words, f"out={mark}"])
                if failed:
                    return failed
        return ""


def unpacked(commit: str, cache: Path) -> Path:
    """A commit's files in a folder of the cache."""
    told = subprocess.run(["git", "rev-parse", commit], cwd=ROOT, capture_output=True, text=True, check=False)
    if told.returncode:
        sys.exit(f"{commit} is neither a commit of {ROOT} nor a folder with src/lmsd")
    folder = cache / "trees" / told.stdout.strip()
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = tempfile.mkdtemp(dir=folder.parent)
        packed = subprocess.run(["git", "archive", folder.name], cwd=ROOT, capture_output=True, check=True)
        subprocess.run(["tar", "x", "-C", partial], input=packed.stdout, check=True)
        Path(partial).rename(folder)
    return folder


def digest_of(folder: Path) -> str:
    """Names a tree's code and configuration, and the torch that runs it."""
    found = hashlib.sha256(str(torch.__version__).encode())
    for path in sorted([*(folder / "src").rglob("*"), *(folder / "configs").rglob("*")]):
        if path.suffix in (".py", ".yaml", ".html", ".json"):
            found.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return found.hexdigest()[:16]


def lines(run: Path) -> Iterator[dict[str, float]]:
    """The lines of metrics.jsonl without what a clock measured."""
    for line in (run / "metrics.jsonl").read_text().splitlines():
        yield {k: v for k, v in json.loads(line).items() if not any(word in k for word in TIMES)}


def scores(run: Path) -> dict[str, Any]:
    """The record of the evaluation on val, if there was one."""
    path = run / "eval" / "val" / "metrics.json"
    found: dict[str, Any] = json.loads(path.read_text())["scores"] if path.is_file() else {}
    return found


def weights(run: Path) -> dict[str, Any]:
    """Digests of a run's last checkpoint: players, averages and optimizers, by role."""
    newest = max((run / "checkpoints").glob("step_*.ckpt"))
    return canonical(torch.load(newest, map_location="cpu", weights_only=True))


def canonical(content: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint of any version: rows [name, sha256] by kind (players, averages, optimizers) and role."""
    players: dict[str, list[list[str]]] = {}
    averages: dict[str, list[list[str]]] = {}
    for key, value in content["state_dict"].items():
        if not isinstance(value, Tensor):
            continue
        if match := re.fullmatch(r"players\.(\w+?)\.(.+)", key):
            players.setdefault(match[1], []).append([match[2], sha256(value)])
        elif match := re.fullmatch(r"ema\.(?:([a-z_]\w*)\.)?(\d+)\.(.+)", key):
            role = f"{match[1] or 'generator'} {match[2]}"
            averages.setdefault(role, []).append([match[3], sha256(value)])
    return {"players": players, "averages": averages, "optimizers": optimizers(content)}


def optimizers(content: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """Each role's optimizer: its options and its states, in the order of its parameters."""
    states = content.get("optimizers")
    if states is None:  # before version 3: a list in the order of the players
        states = dict(zip(content["lmsd"]["players"], content["optimizer_states"], strict=True))
    found = {}
    for role, state in states.items():
        rows = [["options", repr([options(group) for group in state["param_groups"]])]]
        for number, moments in sorted(state["state"].items(), key=lambda item: int(item[0])):
            for name, value in sorted(moments.items()):
                told = sha256(value) if isinstance(value, Tensor) else repr(value)
                rows.append([f"{number}.{name}", told])
        found[role] = rows
    return found


def options(group: Mapping[str, Any]) -> dict[str, Any]:
    """What an optimizer's options say of its next step."""
    words = ("lr", "betas", "momentum", "eps", "weight_decay", "amsgrad")
    return {name: group[name] for name in words if name in group}


def sha256(value: Tensor) -> str:
    """Of a tensor's type, shape and bytes."""
    flat = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{value.dtype}{list(value.shape)}".encode() + flat).hexdigest()[:16]


def difference(old: Mapping[str, Any], new: Mapping[str, Any], excepted: Sequence[str]) -> str:
    """The first difference of two records in words; nothing where there is none."""
    for record, name in ((old, "OLD"), (new, "NEW")):
        if "failed" in record:
            return f"{name} failed: {record['failed'].splitlines()[-1]}"
    for number, (one, other) in enumerate(zip(old["lines"], new["lines"], strict=False), start=1):
        for key, value in one.items():
            if left_out(key.removeprefix("val/"), excepted):
                continue
            if key not in other:
                return f"line {number}: NEW has no {key}"
            if not equal(value, other[key]):
                return f"line {number} ({one.get('images')} images): {key} {value!r} -> {other[key]!r}"
    if len(old["lines"]) != len(new["lines"]):
        return f"{len(old['lines'])} lines of metrics -> {len(new['lines'])}"
    for key, value in old["scores"].items():
        if not left_out(key, excepted) and not equal(value, new["scores"].get(key)):
            return f"score {key}: {value} -> {new['scores'].get(key)}"
    return next(
        (told for kind in ("players", "averages", "optimizers") if (told := other_bits(old, new, kind))), ""
    )


def other_bits(old: Mapping[str, Any], new: Mapping[str, Any], kind: str) -> str:
    """The first tensor of one kind that differs; names may."""
    for role, rows in old[kind].items():
        if role not in new[kind]:
            return f"{kind}: NEW has no {role}, only {', '.join(new[kind])}"
        others = new[kind][role]
        if sorted(told for _, told in rows) == sorted(told for _, told in others):
            continue
        there = {told for _, told in others}
        first = next(
            (name for name, told in rows if told not in there), f"{len(rows)} tensors -> {len(others)}"
        )
        return f"{kind}: {role} {first}"
    return ""


def left_out(name: str, excepted: Sequence[str]) -> bool:
    """Whether a score is one of those that may differ; kid stands for kid_floor and kid_train, too."""
    kind = name.partition("[")[0].partition("/")[0]
    return any(kind == each or kind.startswith(f"{each}_") for each in excepted)


def equal(one: Any, other: Any) -> bool:
    """Bit for bit, NaN like NaN; of a score's parts only those that OLD has."""
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and all(equal(v, other.get(k)) for k, v in one.items())
    return json.dumps(one) == json.dumps(other)


def absent(run: str) -> str:
    """The data set of LMSD_TEST_DATA that a run needs and does not find."""
    for mark, path in GIVEN.items():
        folder = Path(os.environ.get("LMSD_TEST_DATA", ""), "data", path.partition("/")[0])
        if any(mark in word for word in RUNS[run]) and not folder.is_dir():
            return path.partition("/")[0]
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description="see the head of this file")
    parser.add_argument("old")
    parser.add_argument("new", nargs="?", default=str(ROOT))
    parser.add_argument("--only", default=",".join(RUNS), help="some of: " + ", ".join(RUNS))
    parser.add_argument("--except", default="", dest="excepted", help="scores that may differ, as kid,is")
    parser.add_argument("--fresh", action="store_true", help="run both again")
    chosen = parser.parse_args()
    root = os.environ.get("LMSD_CACHE")
    cache = (Path(root) if root else Path.home() / ".cache" / "lmsd") / "same"
    trees = Tree(chosen.old, cache), Tree(chosen.new, cache)
    for tree in trees if chosen.fresh else ():
        shutil.rmtree(tree.kept, ignore_errors=True)
    differing = 0
    for run in chosen.only.split(","):
        if absent(run):
            print(f"{run:14} left out: LMSD_TEST_DATA has no data/{absent(run)}", flush=True)
            continue
        old, new = (
            tree.record(run, renamed=renamed) for tree, renamed in zip(trees, ({}, RENAMED), strict=True)
        )
        told = difference(old, new, chosen.excepted.split(","))
        differing += bool(told)
        count = len(old.get("lines", ()))
        print(f"{run:14} {told or f'equal ({count} lines)'}", flush=True)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
