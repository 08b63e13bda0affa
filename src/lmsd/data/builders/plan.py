"""What a build is, as plain data: how every picture is prepared, and by which rules it is kept and placed.

A plan decides every byte that is written, given the pictures. It is stored with what is prepared, so that a
killed build, and parts of one build on several machines, go on together only where their plans are equal.
"""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy
import PIL

import lmsd
from lmsd.data.builders.options import ONLY_FOR, BuildOptions
from lmsd.data.builders.source import NearDuplicates, Source
from lmsd.data.names import printable
from lmsd.errors import Count, UserError
from lmsd.flat import flat


@dataclass(frozen=True)
class Work:
    """How a build is done, which changes nothing of what comes out.

    workers: processes that prepare and write; part: `3/64`, the third of 64 parts, which `lmsd data merge`
    joins.
    """

    workers: Count = 1
    part: str | None = None

    @property
    def share(self) -> tuple[int, int] | None:
        """Which part, from 1, and of how many. UserError for anything but `3/64`."""
        if self.part is None:
            return None
        one, _, many = self.part.partition("/")
        if not (one.isdecimal() and many.isdecimal() and 1 <= int(one) <= int(many)):
            raise UserError(f"part={self.part} is no part of a build: write part=3/64, the third of 64")
        return int(one), int(many)


@dataclass(frozen=True)
class Recipe:
    """How one picture is prepared, as far as it depends on nothing but this picture.

    image_size: side in pixels; fields: names that `where` may use.
    """

    image_size: int
    channels: Literal[1, 3]
    denoise: Literal["none", "median", "gaussian"]
    image_format: Literal["png", "jpg"]
    where: str | None
    fields: tuple[str, ...]


@dataclass(frozen=True)
class Rules:
    """What is decided over all pictures; see `Preparation` and `Defaults`."""

    near_duplicates: NearDuplicates
    similarity: float
    kinship: float | None
    val: float
    test: float
    shard_size: int


@dataclass(frozen=True)
class Plan:
    """A whole build.

    source: what the manifest says of it; options: those that were chosen, for the manifest; versions: of what
    decides bytes.
    """

    source: Mapping[str, Any]
    recipe: Recipe
    rules: Rules
    classes: tuple[str, ...]
    options: Mapping[str, Any]
    versions: Mapping[str, str]

    @property
    def name(self) -> str:
        """The name of the source."""
        return str(self.source["name"])

    def text(self) -> str:
        """The plan as JSON; equal plans have equal texts."""
        return json.dumps(asdict(self))


def plan_of(source: Source, options: BuildOptions) -> Plan:
    """The plan of a source and options, the source's defaults filled in."""
    own, asked = source.defaults, options.pictures
    recipe = Recipe(
        asked.image_size or own.image_size,
        asked.channels or own.channels,
        asked.denoise,
        options.image_format,
        asked.where,
        tuple(sorted(source.fields)),
    )
    rules = Rules(
        asked.near_duplicates or own.near_duplicates,
        own.similarity if asked.similarity is None else asked.similarity,
        own.kinship,
        own.val if asked.val is None else asked.val,
        own.test if asked.test is None else asked.test,
        options.shard_size,
    )
    versions = {
        "lmsd": lmsd.__version__,
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
        "python": platform.python_version(),
    }
    told = {"name": source.name, **source.details}
    return Plan(told, recipe, rules, tuple(source.classes or ()), _chosen(source, options), versions)


def plan_from(text: str) -> Plan:
    """The plan that `Plan.text` wrote."""
    found = json.loads(text)
    recipe = {**found["recipe"], "fields": tuple(found["recipe"]["fields"])}
    parts = {"recipe": Recipe(**recipe), "rules": Rules(**found["rules"]), "classes": tuple(found["classes"])}
    return Plan(**{**found, **parts})


def _chosen(source: Source, options: BuildOptions) -> dict[str, object]:
    """The options that the source reads, with its own defaults filled in; paths without their folders."""
    own = {**asdict(source.defaults), "lines": "keep" if source.name == "coco" else "join"}
    read = {
        name: value
        for name, value in flat(options).items()
        if name
        not in ("overwrite", "image_size", "channels", *(["where"] if options.pictures.where is None else []))
        and source.name in ONLY_FOR.get(name, (source.name,))
    }
    return {
        name: printable(value.name) if isinstance(value, Path) else own.get(name) if value is None else value
        for name, value in read.items()
    } | {"kinship": own["kinship"]}
