"""`lmsd data synthesize`: images that a run draws, as shards to train on."""

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import lmsd
from lmsd.cli.config import options
from lmsd.cli.config.settings import SamplingOptions
from lmsd.cli.runs import store
from lmsd.errors import Count, Guidance, Number, Seed, Share, UserError

SIZE = 1_000
"""Samples of a shard."""

if TYPE_CHECKING:  # torch is imported where it is used
    from lmsd.data.shardset import ShardSet
    from lmsd.evaluation.synthesis import Drawn, Filters


@dataclass(frozen=True, kw_only=True)
class SynthesizeOptions:
    """Options of `lmsd data synthesize`; see the help of `lmsd data`."""

    run: str
    out: Path
    n: Count
    balanced: bool = False
    confidence: Share = 0.9
    near: Annotated[float, Number(0, 0.5)] = 0.01
    seed: Seed = 0
    steps: Count | None = None
    guidance: Guidance | None = None
    ema: str = "ema"


def synthesize(arguments: list[str]) -> int:
    """Draw, filter and write; say what was kept."""
    print(made(options.read(SynthesizeOptions, arguments, verb="data synthesize")))
    return 0


def made(chosen: SynthesizeOptions) -> str:
    """Write the shards of a run's images; what is in them, as a line."""
    from lmsd.cli.bar import Bar
    from lmsd.cli.build.experiment import shard_set
    from lmsd.cli.build.trained import facts, opened
    from lmsd.data.builders.folders import fresh_folder
    from lmsd.data.index import ensure
    from lmsd.evaluation.synthesis import Law, true_of
    from lmsd.evaluation.synthesis import synthesize as draw

    folder = store.find_folder(chosen.run)
    config = store.config_of(folder)
    if config.data.get("images"):
        raise UserError(
            f"{folder.name} makes images of other images (data.images=), and these would have to be drawn "
            "first: synthesize from a run that makes them of captions"
        )
    sampling = SamplingOptions(run=chosen.run, steps=chosen.steps, guidance=chosen.guidance, ema=chosen.ema)
    model, generate = opened(folder, sampling)
    data = shard_set(config)
    law = Law(data.split_set("train", real=True), balanced=chosen.balanced, shape=model.generator.image_shape)
    with fresh_folder(chosen.out, overwrite=False) as work:
        kept = filters(config, data, chosen)
        with Bar() as bar:
            found = draw(
                generate,
                law,
                kept,
                n=chosen.n,
                seed=chosen.seed,
                progress=bar.update,
            )
        judged = kept.classifier.recipe.target if kept.classifier and kept.confidence else None
        found = true_of(found, reads=model.generator.conditioner.reads, judged=judged)
        shards = written(found, work)
        origin = {"name": "synthetic", "run": folder.name, **facts(model, generate)}
        write_manifest(work, shards, found, origin, chosen)
    for shard in shards:
        ensure(chosen.out.absolute() / shard.name)
    told = found.told
    return (
        f"{chosen.out}: {chosen.n:,} images of {folder.name}, of {found.tried:,} drawn ({told['unsure']:,} "
        f"unsure, {told['copy']:,} copies left out); train on them beside real ones: "
        f"data.shards=[REAL,{chosen.out}] data.weights=[0.7,0.3]"
    )


def filters(config: Any, data: "ShardSet", chosen: SynthesizeOptions) -> "Filters":
    """The run's own extractor, and its classifier where it is one."""
    from lmsd.cli.build.extractors import extractor_of
    from lmsd.evaluation.synthesis import Filters
    from lmsd.features.cnn import Extractor

    extractor = extractor_of(config.evaluate.extractor, data)
    known = (config.evaluate.extractor.get("kind") or "lmsd-cnn") == "lmsd-cnn"
    return Filters(
        extractor,
        data.split_set("train", real=True),
        classifier=cast(Extractor, extractor) if known else None,
        confidence=chosen.confidence,
        near=chosen.near,
    )


def written(found: "Drawn", folder: Path) -> list[Path]:
    """The shards of what was drawn."""
    from lmsd.data.builders.write import write_split
    from lmsd.data.synthetic import NAME

    return write_split(folder, NAME, samples(found), size=SIZE)


def samples(found: "Drawn") -> Iterator[dict[str, str | bytes]]:
    """The members of every sample, as webdataset writes them; keys begin with the sample's number."""
    from PIL import Image

    for number, image in enumerate(found.images):
        pixels = image.permute(1, 2, 0).numpy()
        target = io.BytesIO()
        Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).save(target, "PNG")
        content = target.getvalue()
        members: dict[str, str | bytes] = {
            "__key__": f"{number:08d}{hashlib.sha256(content).hexdigest()[:12]}",
            "png": content,
        }
        if found.text is not None:
            members["txt"] = found.text[number].encode()
        if found.labels is not None:
            members["cls"] = str(found.labels[number]).encode()
        yield members


def write_manifest(
    folder: Path, shards: list[Path], found: "Drawn", origin: dict[str, Any], chosen: SynthesizeOptions
) -> None:
    """Write manifest.json: which run, from which checkpoint, how, and what was left out."""
    from lmsd.data.builders.folders import MANIFEST
    from lmsd.files import sha256_of

    given = {name: value for name, value in asdict(chosen).items() if name not in ("out", "run")}
    manifest = {
        "version": 1,
        "source": origin,
        "image_size": found.images.shape[-1],
        "channels": found.images.shape[1],
        "captions": found.text is not None,
        "counts": {"train": len(found.images), "val": 0, "test": 0},
        "shards": {path.name: {"sha256": sha256_of(path), "bytes": path.stat().st_size} for path in shards},
        "tried": found.tried,
        "verdicts": dict(sorted(found.told.items())),
        "options": given,
        "versions": {"lmsd": lmsd.__version__},
    }
    text = json.dumps(manifest, indent=1, ensure_ascii=False, default=str)
    (folder / MANIFEST).write_text(f"{text}\n", encoding="utf-8")
