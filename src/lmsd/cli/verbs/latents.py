"""`lmsd data statistics`: what a run's codec makes of its data, measured and kept in a file."""

from collections.abc import Iterator
from pathlib import Path

from omegaconf import OmegaConf

from lmsd.cli.bar import Bar
from lmsd.cli.config.compose import load
from lmsd.errors import UserError

IMAGES = "images="
AT_ONCE = 50  # images encoded together


def statistics(arguments: list[str]) -> int:
    """Measure the latents of the run that these words of `lmsd train` describe, and write the file."""
    words = [word for word in arguments if not word.startswith(IMAGES)]
    given = next((word.removeprefix(IMAGES) for word in arguments if word.startswith(IMAGES)), "10_000")
    if not given.replace("_", "").isdecimal() or not int(given):
        raise UserError(f"images={given} is not a whole number of at least 1")
    config = load(words)
    path = OmegaConf.select(config, "codec.statistics")
    if path is None:
        raise UserError(
            "where to? lmsd data statistics writes the file codec.statistics=FILE.json of a run whose codec "
            "is an autoencoder"
        )
    import torch

    from lmsd.cli.build.experiment import shard_set
    from lmsd.cli.build.latents import codec_of
    from lmsd.models.statistics import measured

    codec, train = codec_of(config, statistics=False), shard_set(config).split_set("train")
    count = min(len(train), int(given))
    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:count]
    with Bar() as bar:

        def images() -> Iterator[torch.Tensor]:
            for start in range(0, count, AT_ONCE):
                yield train.images(rows[start : start + AT_ONCE])
                bar.update(min(start + AT_ONCE, count), count, "encoding images")

        found = measured(codec, images(), codec.fingerprint)
    found.save(Path(path))
    print(f"{path}: latents of {found.images:,} training images, {len(found.scale)} channels")
    return 0
