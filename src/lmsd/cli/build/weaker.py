"""The weaker model of autoguidance: found by what is typed or recorded of it, and its short name."""

import hashlib
import re
from pathlib import Path

from lmsd.models.exported import MANIFEST
from lmsd.sampling import Model, load


def weaker(folder: Path, text: str) -> Model:
    """The model of RUN, a checkpoint or the name of one of this run's, each with @ema, @HALFLIFE or @raw."""
    place, average = re.findall(r"(.*?)(?:@([^@/]+))?$", text)[0]  # me@host/run is a place
    own = folder / "checkpoints" / place
    found = str(own) if place and own.is_file() else place
    return load(found.removesuffix(f"/{MANIFEST}"), ema=average or "ema")


def short(told: str) -> str:
    """What stands for CHECKPOINT@AVERAGE in the name of a record: another for each run and average."""
    return f"away{Path(told).stem}_{hashlib.sha256(told.encode()).hexdigest()[:8]}"
