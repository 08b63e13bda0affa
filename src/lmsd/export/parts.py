"""Files that a spec names, copied into the export, so that it needs nothing from elsewhere."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmsd.models.exported import PLACE


def copied(node: Any, folder: Path, name: str = "generator") -> Any:
    """The spec with every `path` copied to parts/NAME and named by its place there."""
    match node:
        case Mapping():
            return {key: copied_at(str(key), value, folder, f"{name}.{key}") for key, value in node.items()}
        case list() | tuple():
            return [copied(item, folder, f"{name}.{place}") for place, item in enumerate(node)]
    return node


def copied_at(key: str, value: Any, folder: Path, name: str) -> Any:
    """One entry of a node; only what is called path and exists is a file."""
    if key != "path" or type(value) is not str or not Path(value).exists():
        return copied(value, folder, name)
    place = Path("parts") / name.removesuffix(".path") / Path(value).name
    if Path(value).is_dir():
        shutil.copytree(value, folder / place)
    else:
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(value, folder / place)
    return f"{PLACE}{place.as_posix()}"
