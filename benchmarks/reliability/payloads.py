"""Code in data, checkpoints, indexes and configurations: none of it runs.

    python benchmarks/reliability/payloads.py

Each payload would make a folder; after each there must be none.
"""

import contextlib
import os
import pickle
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import report
from hostile import GOOD, Payload, captions, tar
from omegaconf import OmegaConf

from lmsd import checkpoints
from lmsd.checkpoints import load_weights
from lmsd.cli.build.experiment import instantiate
from lmsd.cli.config.compose import load
from lmsd.cli.runs import store
from lmsd.data.members import SUFFIX
from lmsd.data.shards import resolve
from lmsd.engine import checkpoint as disk

TARGETS = (
    "os.system",
    "os.mkdir",
    "posix.mkdir",
    "builtins.exec",
    "builtins.eval",
    "builtins.open",
    "subprocess.run",
    "subprocess.Popen",
    "pathlib.Path.mkdir",
    "pathlib.Path.write_text",
    "shutil.copytree",
    "importlib.import_module",
    "logging.os.mkdir",
    "timeit.timeit",
    "runpy.run_path",
    "torch.load",
    "torch.hub.load",
    "torch.nn.modules.module.Module.load_state_dict",
    "torch.nn.os.mkdir",
    "torch.optim.Adam.__init__.__globals__",
    "lmsd.models.generator.torch.load",
    "lightning.pytorch.loggers.csv_logs.os.mkdir",
    "lmsd.process.os.mkdir",
    "hydra.utils.get_method",
)
REFERENCES = (
    "${evil}",
    "${oc.create:{_target_: os.mkdir, path: ${oc.env:TRAP}}}",
    "${oc.create:${oc.decode:${oc.env:EVIL}}}",
)
YAML = ("!!python/object/apply:os.mkdir ['{trap}']", "!!python/object/new:os.mkdir ['{trap}']")


def node(target: str, trap: str) -> Any:
    return OmegaConf.create({"_target_": target, "_args_": [trap], "path": trap, "name": trap})


def payloads(folder: Path, trap: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What to try, by name."""
    for target in TARGETS:
        yield f"_target_ {target}", lambda target=target: instantiate(node(target, trap))  # type: ignore[misc]
    nested = OmegaConf.create({"_target_": "torch.nn.Sequential", "_args_": [node("os.mkdir", trap)]})
    yield "nested _target_", lambda: instantiate(nested)
    os.environ["EVIL"] = f"{{_target_: os.mkdir, path: {trap}}}"
    for words in REFERENCES:
        root = {
            "evil": {"_target_": "os.mkdir", "path": trap},
            "net": {"_target_": "torch.nn.Sequential", "odd": words},
        }
        yield f"reference {words[:16]}", lambda root=root: instantiate(OmegaConf.create(root).net)  # type: ignore[misc]
    for number, text in enumerate(YAML):
        run = folder / f"run{number}"
        run.mkdir()
        (run / "config.yaml").write_text(f"a: {text.format(trap=trap)}\n")
        yield f"config.yaml {text[:24]}", lambda run=run: store.config_of(run)  # type: ignore[misc]
    yield "override", lambda: load(["schedule._target_=os.mkdir", f"+schedule.path={trap}"])
    own: dict[str, Any] = {
        "version": checkpoints.VERSION,
        "clock": {"images": 1, "updates": 1},
        "metrics": {},
    }
    for place in ("state_dict", "config", "optimizers"):
        path = folder / f"step_00000000{len(place) % 10}.ckpt"
        state: dict[str, Any] = {"state_dict": {}, checkpoints.KEY: own}
        disk.save({**state, place: Payload()}, path)
        yield f"checkpoint, {place}", lambda path=path: checkpoints.read(path)  # type: ignore[misc]
    for name, data in (("plain pickle", pickle.dumps(Payload())), ("old format", b"")):
        path = folder / f"{name.replace(' ', '')}.ckpt"
        path.write_bytes(data)
        if name == "old format":
            torch.save(Payload(), path, _use_new_zipfile_serialization=False)
        yield f"init_from, {name}", lambda path=path: load_weights(torch.nn.Linear(1, 1), path)  # type: ignore[misc]
    zipped = folder / "zipped.ckpt"
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Payload()))
        archive.writestr("archive/version", "3\n")
    yield "init_from, archive", lambda: load_weights(torch.nn.Linear(1, 1), zipped)
    shard = folder / "train-000000.tar"
    shard.write_bytes(tar([*GOOD[:2], ("000.pyd", pickle.dumps(Payload())), *GOOD[2:]]))
    np.savez(shard.with_name(shard.name + SUFFIX), header=np.asarray(Payload(), dtype=object))
    yield "index and shard", lambda: captions(shard)
    for word in (
        f"pipe:mkdir {trap}",
        f"|mkdir {trap}",
        f"file:///x;mkdir {trap}",
        f"gopen:pipe:mkdir {trap}",
    ):
        yield f"shard {word.split(' ')[0]}", lambda word=word: resolve(word)  # type: ignore[misc]


def sweep() -> tuple[int, list[str]]:
    """All of them; those that ran."""
    failures, number = [], 0
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trap = f"{name}/trap"
        os.environ["TRAP"], os.environ["LMSD_CACHE"] = trap, f"{name}/cache"
        for what, attempt in payloads(Path(name), trap):
            number += 1
            with contextlib.suppress(Exception):  # refused, in whatever way
                attempt()
            if Path(trap).exists():
                failures.append(what)
                os.rmdir(trap)
    return number, failures


if __name__ == "__main__":
    report("payloads, run", *sweep())
