"""`lmsd data votes`: what people said of pairs of pictures, as shards to train on."""

from pathlib import Path

from lmsd.cli.bar import Bar
from lmsd.cli.config import options
from lmsd.data.votes import VotesOptions, build_votes
from lmsd.errors import UserError


def votes(arguments: list[str]) -> int:
    """Write the shards and say what is in them."""
    if not arguments or "=" in arguments[0]:
        raise UserError("name the folder that was serve.votes= before the options; lmsd data --help")
    folder, words = arguments[0], arguments[1:]
    out = [word.partition("=")[2] for word in words if word.startswith("out=")]
    if not out or not out[-1]:
        raise UserError("where to? lmsd data votes needs out=FOLDER")
    others = [word for word in words if not word.startswith("out=")]
    chosen = options.read(VotesOptions, others, verb="data votes")
    if chosen.val + chosen.test >= 1:
        raise UserError(f"val={chosen.val} and test={chosen.test} leave nothing for train: make them smaller")
    with Bar() as bar:
        made = build_votes(Path(folder), Path(out[-1]), chosen, progress=bar.update)
    counts = ", ".join(f"{count} {split}" for split, count in made.counts.items())
    none = sum(made.undecided.values())
    print(f"{out[-1]}: {counts} pairs; votes that prefer none: {none} ({made.manifest})")
    return 0
