"""Where the configurations lie: ours, and the user's own beside them."""

import os
from pathlib import Path

from lmsd.errors import UserError


def config_dir() -> Path:
    """The folder of configurations: the repository's, or the installed package's."""
    here = Path(__file__).resolve()
    beside = here.parents[4] / "configs"
    return beside if (beside / "train.yaml").is_file() else here.parents[2] / "configs"


def own_configs() -> list[Path]:
    """The user's own folders of config groups, which add to ours: LMSD_CONFIG_DIR, separated as in PATH."""
    folders = [
        Path(word).resolve() for word in os.environ.get("LMSD_CONFIG_DIR", "").split(os.pathsep) if word
    ]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"LMSD_CONFIG_DIR names {folder}, which is no folder")
    return folders


def groups() -> dict[str, list[str]]:
    """The choices of every config group, by its name."""
    found: dict[str, set[str]] = {}
    for root in (config_dir(), *own_configs()):
        for path in root.rglob("*.yaml"):
            if path.parent != root:
                found.setdefault(path.parent.relative_to(root).as_posix(), set()).add(path.stem)
    return {name: sorted(found[name]) for name in sorted(found)}
