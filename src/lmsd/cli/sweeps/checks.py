"""What a sweep looks at before its first trial: that each of its combinations exists, and has a score.

combinations            each is composed; an interval stands as its two ends
scores on val           by the extractor that gives them, and by evaluate.n: at once, also for --dry-run; by
                        how many images val holds, and how many pairs of the same label those make
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from omegaconf import DictConfig, OmegaConf

from lmsd.cli.config.compose import load
from lmsd.cli.config.limits import check_limits
from lmsd.cli.config.schema import root
from lmsd.cli.config.settings import ExtractorKind
from lmsd.cli.config.signatures import ANYTHING
from lmsd.cli.sweeps.monitors import KNOWN
from lmsd.cli.sweeps.space import Space
from lmsd.errors import UserError
from lmsd.evaluation.catalog import CATALOG, FEATURES, LOCAL, PAIRED, kind_of

if TYPE_CHECKING:
    from lmsd.data.shardset import ShardSet

OF_FAMILIES = ("sw_ratio", "fd", "fd_infinity", "fd_matched", "fd_ratio", "precision", "recall", "density",
               "coverage")  # fmt: skip
"""The scores that each of `evaluate.families` has beside the run's own extractor."""
COPIES = ("neighbor_ratio", "copies")
_FAMILIES = {"ssl": "lmsd-ssl", "random": "random-conv", "none": "none"}
"""The kind of each family's extractor; a folder is a DINOv2's."""


def checked(space: Space, *, monitor: str = "fd") -> Space:
    """The space with the devices that its trials ask for. Raises UserError where a trial cannot be.

    monitor: the score that trials are ranked by, which all of them have to give.
    """
    devices: list[int | str] = []

    def check(config: DictConfig, words: list[str]) -> None:
        check_limits(config)
        require(monitor, config.evaluate)
        devices.append(config.devices)

    space = counted(space)
    each(space, check)
    return replace(space, devices=None if "auto" in devices else max(map(int, devices)))


def corners(space: Space, *, apart: str = "") -> Iterator[dict[str, Any]]:
    """Every combination, an interval standing as its two ends; of the option `apart` the first value."""
    values = [axis.choices or (axis.low, axis.high) for axis in space.axes]
    told = [row[:1] if axis.key == apart else row for axis, row in zip(space.axes, values, strict=True)]
    for combination in product(*told):
        yield {axis.key: value for axis, value in zip(space.axes, combination, strict=True)}


def each(space: Space, check: Callable[[DictConfig, list[str]], object], *, apart: str = "") -> None:
    """Call `check` with every corner's configuration and words; raise UserError where it refuses any.

    What compositions and checks note is said once, whichever combinations it is about.
    """
    refused: list[tuple[str, UserError]] = []
    looked, notes = list(corners(space, apart=apart)), StringIO()
    for values in looked:
        words = space.words(values)
        try:
            with redirect_stderr(notes):
                check(load(words), words)
        except UserError as error:
            refused.append((" ".join(words[len(space.fixed) :]), error))
    for note in dict.fromkeys(notes.getvalue().splitlines()):
        print(note, file=sys.stderr)
    if refused:
        which, first = refused[0]
        if len(refused) == len(looked):
            raise first
        raise UserError(
            f"{len(refused)} of {len(looked)} combinations cannot be trained, the first of them {which}: "
            f"{first}"
        )


def counted(space: Space) -> Space:
    """The space with intervals of whole numbers where options take no others: net.width=interval(8,64)."""
    axes = list(space.axes)
    if all(axis.choices or axis.whole for axis in axes):
        return space
    tree: Any = OmegaConf.to_container(load(space.words(next(corners(space)))))
    for place, axis in enumerate(axes):
        kinds = [part.get("type") for part in (root(tree).at(axis.key).kind or ANYTHING).parts]
        if axis.choices or "integer" not in kinds or "number" in kinds:
            continue
        low, high = int(axis.low), int(axis.high)
        if (low, high) != (axis.low, axis.high):
            raise UserError(f"{axis.key} takes whole numbers: write {axis.key}=int(interval({low},{high}))")
        axes[place] = replace(axis, low=low, high=high)
    return replace(space, axes=tuple(axes))


def require(monitor: str, settings: Any, *, held_out: int | None = None) -> None:
    """Refuse a score that runs scored by these settings (`evaluate`) will not have.

    held_out: images of val, where they are counted already.
    """
    if settings.n == 0:
        raise UserError("evaluate.n=0: a sweep ranks its trials by their scores on val; give evaluate.n=1000")
    for name in settings.families:
        if name not in _FAMILIES and not Path(name).is_dir():
            raise UserError(f"evaluate.families: there is no family {name}; take ssl, random, or a folder")
    asked, own = monitor.partition("[")[2].partition("@")[0].removesuffix("]"), settings.extractor.kind
    beside = [_FAMILIES.get(name, "dinov2") for name in settings.families]
    by = asked if asked in beside and kind_of(monitor) in OF_FAMILIES else own
    why = lacking(kind_of(monitor), settings, held_out, by)
    if not why and asked not in ("", by):
        ways = [f"evaluate.extractor.kind={asked}"] if asked in get_args(ExtractorKind) else []
        told = _FAMILIES.items() if kind_of(monitor) in OF_FAMILIES else ()
        ways += [f"evaluate.families=[{name}]" for name, kind in told if kind == asked]
        why = f"runs are scored with {own}{'; it comes with ' * bool(ways)}{' or '.join(ways)}"
    if why:
        others = ", ".join(name for name in KNOWN if not lacking(name, settings, held_out, own))
        raise UserError(f"sweep.monitor={monitor}: {why}; with these settings trials have {others}")


def lacking(name: str, settings: Any, held_out: int | None, by: str) -> str:
    """Why runs will not have a score by an extractor, and what gives it; empty if nothing is against it."""
    kind = CATALOG[name]
    givers = ("lmsd-cnn",) if name == "right" and settings.checker is None else kind.extractors
    if givers and by not in givers:
        return f"it comes with evaluate.extractor.kind={' or '.join(givers)}, and runs are scored with {by}"
    if name.startswith("sw_") and set(settings.families) <= {"none"}:
        return "it comes with evaluate.families=[random]"
    if name in COPIES and not settings.neighbors:
        return "it comes with evaluate.neighbors=true"
    least = max(kind.least, 2 * features(settings.extractor, by) if name.startswith("fd") else 0)
    if settings.n < least:
        return f"it needs {least} images, and evaluate.n={settings.n}: give evaluate.n={least}"
    if held_out is not None and held_out < least:
        return f"it needs {least} images, and val has {held_out}"
    return ""


def features(extractor: Any, by: str) -> int:
    """How many features an extractor has; 0 where that is not known before it is opened."""
    described = Path(str(extractor.path)) / "config.json"
    if by in FEATURES or by != extractor.kind or not described.is_file():
        return FEATURES.get(by, 0)
    card = json.loads(described.read_text(encoding="utf-8"))
    return int(card.get("projection_dim") or card.get("hidden_size") or 0)


def require_data(monitor: str, settings: Any, data: "ShardSet") -> None:
    """Refuse a score that the val shards hold too little for."""
    from lmsd.cli.build.validate import require_val
    from lmsd.evaluation.measures import LEAST_PAIRS, alike, drawn
    from lmsd.features.base import captions_of
    from lmsd.metrics import matched_halves

    require_val(data)
    val, name = data.split_set("val"), kind_of(monitor)
    require(monitor, settings, held_out=len(val))
    rows = drawn(len(val), min(settings.n, len(val)))
    keys = alike(val.labels(rows), captions_of(val, rows), len(rows))
    pairs = len(matched_halves(keys, 0)[0])
    if CATALOG[name].least in (PAIRED, LOCAL) and pairs < LEAST_PAIRS:
        raise UserError(
            f"sweep.monitor={monitor}: {len(keys)} images of val make {pairs} pairs"
            f"{' of the same label' * (len(set(map(str, keys))) > 1)}, and it needs {LEAST_PAIRS}: give a "
            "larger evaluate.n, or sweep.monitor=right"
        )
    if name == "right" and not any(map(str, keys)):
        raise UserError("sweep.monitor=right: val has neither captions nor classes to be right about")
