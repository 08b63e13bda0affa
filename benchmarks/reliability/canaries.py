"""Ten planted secrets; a run with Weights and Biases, offline; and none of them in any file that it leaves.

python benchmarks/reliability/canaries.py
"""

import os
import subprocess
import sys
from pathlib import Path

from harness import report, workplace
from kills import DATA, WORDS

from lmsd import cli

NAMES = ("env", "hf", "aws", "wandb", "option", "list", "user", "query", "git", "password")
CANARIES = {name: f"canary{name}5f3a91".ljust(40, "0") for name in NAMES}
VARIABLES = {
    "hf": "HF_TOKEN",
    "aws": "AWS_SECRET_ACCESS_KEY",
    "wandb": "WANDB_API_KEY",
    "password": "DB_PASSWORD",
    "env": "CANARY_GROUP",
}
LOGGER = """
wandb:
  _target_: lightning.pytorch.loggers.WandbLogger
  project: canaries
  group: ${oc.env:CANARY_GROUP}
  name: ${name}
"""


def train(*words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-m", "lmsd.cli", "train", *WORDS, *words], capture_output=True)


def plant() -> None:
    """Secrets in the environment, in a config of the user's own, and in the remote of a repository."""
    os.environ.update({variable: CANARIES[name] for name, variable in VARIABLES.items()})
    os.environ.update(WANDB_MODE="offline", LMSD_CONFIG_DIR="configs")
    Path("configs/logger").mkdir(parents=True)
    Path("configs/logger/own.yaml").write_text(LOGGER)
    remote = f"https://me:{CANARIES['git']}@h.invalid/x"
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(["git", "remote", "add", "origin", remote], check=True)


def run() -> tuple[int, list[str]]:
    """One run, and one that fails; the canaries in a file of the first one's folder, or in what they said."""
    assert cli.run(DATA) == 0
    plant()
    source = f"source='https://u:{CANARIES['user']}@h/x?Signature={CANARIES['query']}'"
    done = train("images=640", "evaluate.n=0", "logger=own", "run_dir=run", source)
    shards = f"data.test=[data/digits,'https://u:{CANARIES['list']}@h.invalid/test-0.tar']"
    said = [
        done,
        train("run_dir=bad", shards),
        train(f"init_from='https://u:{CANARIES['option']}@h/weights'"),
    ]
    files = [path for path in Path("run").rglob("*") if path.is_file()]
    left = [text for one in said for text in (one.stdout, one.stderr)]
    left += [str(path).encode() + path.read_bytes() for path in files]
    # the group's name is what wandb is told to write into its own file, and nobody else
    metrics = [text for text in left if b".wandb" not in text[:200]]
    found = [name for name, canary in CANARIES.items() if any(canary.encode() in text for text in metrics)]
    found += [
        name for name in NAMES if name != "env" and any(CANARIES[name].encode() in text for text in left)
    ]
    if done.returncode or not any("wandb" in str(path) for path in files):
        found.append(f"the run itself (exit code {done.returncode}: {done.stderr.decode()[-300:]})")
    return len(CANARIES), found


if __name__ == "__main__":
    with workplace():
        report("canaries, found", *run())
