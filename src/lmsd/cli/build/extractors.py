"""The extractors that a run is scored with: the data set's own, found or trained, or from files."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lmsd.cli.bar import Bar
from lmsd.cli.runs.agreed import agreed
from lmsd.data.shardset import ShardSet
from lmsd.errors import UserError
from lmsd.features.base import FeatureExtractor
from lmsd.features.cnn import Extractor, load_extractor, save_extractor, train_extractor
from lmsd.features.ssl import train_without_labels
from lmsd.files import cache_folder


def extractor_of(settings: DictConfig, data: ShardSet) -> FeatureExtractor:
    """What `evaluate.extractor` describes: kind and path, or lmsd-cnn of these data.

    Images without captions and classes have lmsd-ssl in its place, and the settings say so from then on.
    """
    kind = settings.get("kind") or "lmsd-cnn"
    path = None if settings.path is None else Path(settings.path)
    train = data.index("train")
    if kind == "lmsd-cnn" and path is None and not (train.captions or train.labels):
        settings.kind = kind = "lmsd-ssl"
    if kind in ("lmsd-cnn", "lmsd-ssl"):
        if path is not None and not (path / f"{kind}.json").is_file():
            raise UserError(f"evaluate.extractor.path={path} holds no {kind}; lmsd data features makes one")
        return find_or_train(data, kind=kind, augment=settings.augment, images=settings.images, folder=path)[
            0
        ]
    if path is None:
        ways = "evaluate.extractor.path=PATH, or weights=PATH of lmsd evaluate"
        raise UserError(f"evaluate.extractor.kind={kind} needs its weights: {ways}")
    if kind == "inception":
        from lmsd.features.inception import InceptionExtractor

        return InceptionExtractor(path)
    from lmsd.features.pretrained import CLIPExtractor, DINOv2Extractor

    return CLIPExtractor(path) if kind == "clip" else DINOv2Extractor(path)


def classifier_of(settings: DictConfig, data: ShardSet, width: int, seed: int) -> Extractor:
    """Another lmsd-cnn of these data, to be trained on; rank 0 trains it, and the others find it."""

    def made() -> str:
        own = {"augment": settings.augment, "images": settings.images, "seed": seed, "width": width}
        return str(find_or_train(data, **own)[1])

    return load_extractor(agreed(f"classifier_{width}_{seed}", made))


def find_or_train(
    data: ShardSet,
    *,
    kind: str = "lmsd-cnn",
    augment: Any = "shift",
    images: int | None = None,
    seed: int = 0,
    width: int = 32,
    folder: Path | None = None,
) -> tuple[Extractor, Path]:
    """lmsd-cnn or lmsd-ssl for these data and where it is kept: `folder`, or the user's cache, by recipe."""
    train = data.split_set("train", real=True)
    name = "-".join([kind, train.hash[:16], augment, str(images or "default"), str(seed)])
    name += f"-w{width}" if width != 32 else ""
    kept = folder or cache_folder() / "extractors" / name
    if (kept / f"{kind}.json").is_file():
        return load_extractor(kept, kind=kind), kept
    learn = train_without_labels
    if kind == "lmsd-cnn":
        held_out = data.split_set("val") if data.has("val") else None
        learn = partial(train_extractor, held_out=held_out, width=width)
    else:
        print(f"note: lmsd-ssl of these data is trained first, once, and kept in {kept}", file=sys.stderr)
    with Bar() as bar:
        extractor = learn(
            train, augment=augment, images=images, seed=seed, data=train.hash, progress=bar.update
        )
    save_extractor(extractor, kept)
    return extractor, kept
