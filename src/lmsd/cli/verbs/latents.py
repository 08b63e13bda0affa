"""`lmsd data statistics` and `lmsd data encode`: what a run's codec makes of its data, measured and kept."""

from collections.abc import Iterator
from pathlib import Path

from omegaconf import OmegaConf

from lmsd.cli.bar import Bar
from lmsd.cli.config.compose import load
from lmsd.errors import UserError
from lmsd.ranks import launched_rank, launched_world

IMAGES = "images="
AT_ONCE = 50  # images encoded together


def statistics(arguments: list[str]) -> int:
    """Measure the latents of the run that these words of `lmsd train` describe, and write the file."""
    words = [word for word in arguments if not word.startswith(IMAGES)]
    # the last of several counts, as everywhere: a run's own words may have one
    given = ["10_000", *(word.removeprefix(IMAGES) for word in arguments if word.startswith(IMAGES))][-1]
    if not given.replace("_", "").isdecimal() or not int(given):
        raise UserError(f"images={given} is not a whole number of at least 1")
    config = load(words)
    from lmsd.cli.build.latents import codec_of

    codec = codec_of(config, statistics=False)
    path = OmegaConf.select(config, "codec.statistics") or codec.kept
    if path is None:
        raise UserError(
            "where to? lmsd data statistics writes the file codec.statistics=FILE.json of a run whose codec "
            "is an autoencoder"
        )
    import torch

    from lmsd.cli.build.experiment import shard_set
    from lmsd.models.statistics import measured

    train = shard_set(config).split_set("train")
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


def encode(arguments: list[str]) -> int:
    """Write the latents of the run that these words describe, and the codes of a frozen text encoder.

    Ranks of torchrun or SLURM share the work; what is there already stays.
    """
    config = load(arguments)
    folder = OmegaConf.select(config, "data.train.latents")
    if folder is None:
        raise UserError(
            "where to? lmsd data encode writes into data.train.latents=FOLDER, as the run reads it"
        )
    from lmsd import spec
    from lmsd.cli.build.experiment import shard_set
    from lmsd.cli.build.latents import captions_of, codec_of, maker
    from lmsd.cli.build.reading import check_condition
    from lmsd.cli.config.schema import plain
    from lmsd.data.latents import encode_shards
    from lmsd.models.codes import encode_captions
    from lmsd.models.conditioner import PretrainedText

    codec, data = codec_of(config, statistics=False), shard_set(config)
    rank, world = launched_rank(), launched_world()
    index, split = data.index("train"), data.split_set("train")
    made = maker(codec, data)
    with Bar() as bar:
        given = (split, index, Path(folder), made, codec.raw)
        new = encode_shards(*given, rank=rank, world=world, progress=bar.update)
    print(f"{folder}: latents of {len(split):,} samples in {len(index.shards)} shards, {new} written here")
    reader = spec.build(plain(config)["conditioner"])
    if isinstance(reader, PretrainedText):
        check_condition(reader, data)
        captions = captions_of(data)
        text = (captions, Path(folder), reader.encode, reader.digest, reader.length)
        with Bar() as bar:
            new = encode_captions(*text, rank=rank, world=world, progress=bar.update)
        print(f"{folder}: codes of {len(captions):,} captions and of none, {new} files written here")
    return 0
