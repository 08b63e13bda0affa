"""N updates of the generator are N, for 1, 2 and 5 updates of D each: log, schedule, checkpoint, W&B's axis.

python benchmarks/reliability/counting.py
"""

import json
import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import codes, fork, report, workplace
from kills import DATA, WORDS

from lmsd import cli
from lmsd.checkpoints import KEY, manifests, read

BATCHES, BATCH = 20, 64


def records(content: bytes, block: int = 32_768) -> Iterator[bytes]:
    """Records of a log in LevelDB's format after 7 bytes of wandb's: crc, length, kind, part of it."""
    at, parts = 7, b""
    while at + 7 <= len(content):
        if block - at % block < 7:
            at += block - at % block
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the whole, or the last part
            yield parts
            parts = b""


def logged(folder: Path) -> list[dict[str, Any]]:
    """What wandb's offline file holds: one record for each line of metrics."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    rows = []
    for data in records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
    return rows


def trial(d_steps: int) -> list[str]:
    """What is not as it should be."""
    folder = Path(f"steps{d_steps}")
    words = [
        *WORDS,
        f"images={BATCHES * BATCH}",
        "evaluate.n=0",
        f"objective.game.d_steps={d_steps}",
        "logger=wandb",
        "objective=lmsd",
    ]
    words += ["objective.warmup=0", "log_every=64", "checkpoint_every=640", f"run_dir={folder}"]
    words += ["optim.decay=cosine", "optim.warmup_images=0"]

    def run() -> None:
        import wandb

        code = cli.run(["train", *words])
        wandb.finish()  # a forked child ends without what usually calls it
        raise SystemExit(code)

    if codes([fork(run, Path("log"))], seconds=600) != [0]:
        return [f"d_steps={d_steps}: the run failed: {Path('log').read_text()[-300:]}"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    own = read(folder)[KEY]["clock"]
    rates = [
        (line["generator/lr"] / lines[0]["generator/lr"], _cosine(n) / _cosine(0))
        for n, line in enumerate(lines)
    ]
    axis = [line["images"] for line in lines]
    checks = {
        "updates in the log": [line["updates"] for line in lines] == list(range(1, BATCHES + 1)),
        "updates of D in the log": [line["discriminator/updates"] for line in lines]
        == [d_steps * n for n in range(1, BATCHES + 1)],
        "the log's axis": axis == list(range(64, BATCHES * BATCH + 1, 64)),
        "the schedule": all(math.isclose(*pair, rel_tol=1e-9) for pair in rates),
        "the checkpoint": (own["images"], own["updates"]) == (BATCHES * BATCH, BATCHES),
        "its name": [path.name for path in manifests(folder / "checkpoints")]
        == ["step_000000640.ckpt", "step_000001280.ckpt"],
        "W&B's axis": [row["trainer/global_step"] for row in logged(folder)] == axis,
    }
    return [f"d_steps={d_steps}: {what}" for what, right in checks.items() if not right]


def _cosine(batch: int) -> float:
    """The factor on the learning rate in the middle of a batch."""
    return 0.5 * (1 + math.cos(math.pi * (batch + 0.5) / BATCHES))


def sweep() -> tuple[int, list[str]]:
    """1, 2 and 5 updates of D."""
    assert cli.run(DATA) == 0
    os.environ["WANDB_MODE"] = "offline"
    return 3, [wrong for d_steps in (1, 2, 5) for wrong in trial(d_steps)]


if __name__ == "__main__":
    with workplace():
        report("counts for 1, 2 and 5 updates of D, wrong", *sweep())
