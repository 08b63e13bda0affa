"""`lmsd data`: build a data set, index shards from elsewhere, train the extractor that scores it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lmsd.cli.bar import Bar
from lmsd.cli.build.sources import lines_of, of_path
from lmsd.cli.config import options
from lmsd.cli.config.suggest import nearest
from lmsd.cli.verbs.parts import MergeOptions, merged, parted
from lmsd.errors import Count, Seed, UserError

__all__ = ["HELP", "MergeOptions", "main"]

HELP = """lmsd data build SOURCE|PATH out=DIR [option=value ...]   check, crop, split, write shards
lmsd data merge PART PART ... out=DIR               the parts of one build joined, as if it had been one
lmsd data index SHARDS [decode=true]                check shards from elsewhere and write their index
lmsd data show SHARDS [out=FILE.html n=48]          a page to look at: samples, sizes, captions, nearest pairs
lmsd data features SHARDS [option=value ...]        train what scores a data set: lmsd-cnn, a classifier, or
                                                    lmsd-ssl (kind=ssl), which never sees a label
lmsd data statistics WORDS [images=10_000]          mean and deviation of a run's latents, into the file that
                                                    its codec reads; WORDS: those of lmsd train
lmsd data encode WORDS                              latents and text codes of a run's training images, once,
                                                    into data.train.latents=FOLDER, which it then reads
lmsd data synthesize run=RUN out=DIR n=1000         images of a run to train on, as shards
lmsd data votes DIR out=FOLDER [option=value ...]   pairs that lmsd serve kept in serve.votes=DIR, as shards

Sources
  digits     scikit-learn's handwritten digits, 8x8, "a handwritten seven"
  shapes     captioned scenes at any size: image_size=16 train_count=10_000
  edits      pairs of such scenes: KEY.source.png, the instruction, KEY.png; image_size=16 train_count=10_000
  cifar10    path=cifar-10-binary.tar.gz, the official binary archive
  PATH       a folder or file as other tools leave them, recognized and said; source=NAME overrules:
             folder       images, .txt or .caption beside each (or captions=FILE.csv|.tsv|.jsonl|.parquet)
             imagefolder  Hugging Face's: metadata.jsonl, .csv or .parquet in it or in each split's folder
             classes      a folder a class                      coco     captions_*.json beside the images
             kohya        10_dog/: ten times an epoch           table    a table that names the images
             parquet      .parquet that holds the images        tars     img2dataset's, or others' shards
             captions=join|first|draw|keep  several captions of an image as one (join), the first, one drawn,
                            or all (keep, and coco), for data.captions=draw
             captions=none  no captions, for conditioner=none or label; taken where no file is a caption
             where="width>=512 and words<40 and label!='cat'"   fields of KEY.json or the table, too

Options of build
  image_size= channels= val= test= (parts)
  train_count= val_count= test_count= holdout= mismatch= seed= (shapes)
  denoise=none|median|gaussian  near_duplicates=same_caption|drop|group|keep  similarity=
  image_format=png|jpg  shard_size=1000  overwrite=false
  workers=1 (processes)  part=3/64 (the third of 64 parts, for merge): the same bytes for any of them, and a
  build that was killed goes on where it was

Options of merge
  workers=1  overwrite=false

Options of index
  decode=false   decode every image too, not its header alone, so that training meets no damaged one

Options of show
  out=data.html  n=48 (samples of each split)  image_size=96 channels= captions=join|first seed=

Options of votes
  val=0.1 test=0 (parts of the prompts)  shard_size=1000  overwrite=false

Options of synthesize
  balanced=false   each class (caption) as often as any other; else as in the training set
  confidence=0.9   least probability that the classifier gives to what was asked for; 0: any
  near=0.01        images closer to a training image than this share of training images is to another are
                   left out as copies; 0: none
  seed=0  steps= guidance= ema=   as in lmsd sample

Options of features
  kind=cnn|ssl  image_size= channels= images= (to train on)  augment=none|shift|shift_flip  out=DIR
"""


def main(arguments: list[str]) -> int:
    """Dispatch to an action."""
    from lmsd.cli.verbs import latents, synthesize, votes

    actions = {
        **{"build": build, "index": index, "show": show, "features": features},
        **{"statistics": latents.statistics, "encode": latents.encode, "votes": votes.votes},
        "synthesize": synthesize.synthesize,
        "merge": merge,
    }
    if arguments[0] not in actions:
        raise UserError(
            f"unknown action '{arguments[0]}'{nearest(arguments[0], actions)}; actions: {', '.join(actions)}"
        )
    return actions[arguments[0]](arguments[1:])


def operand(arguments: list[str], what: str) -> tuple[str, list[str]]:
    """The word that comes before the options, and the rest."""
    if not arguments or "=" in arguments[0]:
        raise UserError(f"name {what} before the options; lmsd data --help")
    return arguments[0], arguments[1:]


def build(arguments: list[str]) -> int:
    """Build a data set from a source."""
    from lmsd.data.builders import SOURCES, BuildOptions
    from lmsd.data.builders import build as build_data

    word, words = operand(arguments, "the source")
    source = next((name for name in SOURCES if name == word), None)
    if source is None:
        source, words = of_path(word, words)
    out = [word.partition("=")[2] for word in words if word.startswith("out=")]
    if not out or not out[-1]:
        raise UserError("where to? lmsd data build needs out=DIR")
    words = [lines_of(word) for word in words if not word.startswith("out=")]
    work, words = parted(words)
    chosen = options.read(BuildOptions, words, verb="data build")
    with Bar() as bar:
        made = build_data(source, Path(out[-1]), options=chosen, work=work, progress=bar.update)
    print(
        describe(made) if work.part is None else f"{made}: part {work.part}; lmsd data merge joins them all"
    )
    return 0


def describe(manifest: Path) -> str:
    """A data set in a few lines, from its manifest: each thing that is worth telling with one name."""
    from lmsd.data.notes import told

    facts = json.loads(manifest.read_text(encoding="utf-8"))
    dropped = facts["dropped"]
    splits = ", ".join(f"{count} {split}" for split, count in facts["counts"].items())
    reasons = told((kind, count, dropped["first"][kind]) for kind, count in dropped["reasons"].items())
    notes = [told([(note["what"], note["count"], note["first"])]) for note in facts["notes"]]
    kind = "image-text pairs" if facts["captions"] else "images without captions"
    line = f"{manifest.parent}: {splits} {kind}; dropped: {reasons or 'none'} ({manifest})"
    return "\n".join([line, *(f"  {note}" for note in notes)])


def merge(arguments: list[str]) -> int:
    """Join the parts of one build."""
    print(describe(merged(arguments)))
    return 0


@dataclass(frozen=True)
class IndexOptions:
    """Options of `lmsd data index`; see HELP."""

    decode: bool = False


def index(arguments: list[str]) -> int:
    """Check shards and write their index."""
    source, words = operand(arguments, "the shards (folder, glob, brace range, URL)")
    chosen = options.read(IndexOptions, words, verb="data index")
    from lmsd.data.notes import told
    from lmsd.data.shards import by_split, resolve
    from lmsd.data.storage import Storage

    checked = "all images decoded" if chosen.decode else "headers of images checked, pixels not (decode=true)"
    with Bar() as bar:
        for split, shards in by_split(resolve(source)).items():
            if shards:
                found = Storage().index(shards, decoding=chosen.decode, progress=bar.update)
                print(
                    f"{split}: {len(found)} samples in {len(found.shards)} shards, "
                    f"index {found.hash[:12]}; {checked}"
                )
                for note in found.notes():
                    print(f"  {told([note])}")
    return 0


@dataclass(frozen=True)
class ShowOptions:
    """Options of `lmsd data show`; n: samples of each split; see HELP."""

    out: Path = Path("data.html")
    n: Count = 48
    image_size: Count = 96
    channels: Literal[1, 3] = 3
    captions: Literal["join", "first"] = "join"
    seed: Seed = 0


def show(arguments: list[str]) -> int:
    """Write the page of a data set."""
    source, words = operand(arguments, "the shards (folder, glob, brace range, URL)")
    chosen = options.read(ShowOptions, words, verb="data show")
    from lmsd.data.builders.folders import MANIFEST
    from lmsd.data.shardset import ShardSet
    from lmsd.evaluation.gallery import write_gallery

    if chosen.out.is_dir() or not chosen.out.absolute().parent.is_dir():
        raise UserError(f"out={chosen.out} is no place for a file: name one such as out=data.html")
    if chosen.out.exists():
        raise UserError(f"{chosen.out} is already there: remove it, or name another file, out=FILE.html")
    data = ShardSet(source, image_size=chosen.image_size, channels=chosen.channels, captions=chosen.captions)
    manifest = Path(source) / MANIFEST
    page = write_gallery(
        data,
        source,
        chosen.out,
        manifest=manifest if manifest.is_file() else None,
        n=chosen.n,
        seed=chosen.seed,
    )
    print(page)
    return 0


@dataclass(frozen=True)
class FeaturesOptions:
    """Options of `lmsd data features`; see HELP."""

    kind: Literal["cnn", "ssl"] = "cnn"
    image_size: Count = 32
    channels: Literal[1, 3] = 3
    images: Count | None = None
    augment: Literal["none", "shift", "shift_flip"] = "shift"
    seed: Seed = 0
    out: Path | None = None


def features(arguments: list[str]) -> int:
    """Train the extractor of a data set, or find the one it has."""
    source, words = operand(arguments, "the shards")
    chosen = options.read(FeaturesOptions, words, verb="data features")
    from lmsd.cli.build.extractors import find_or_train
    from lmsd.data.shardset import ShardSet

    data = ShardSet(source, image_size=chosen.image_size, channels=chosen.channels)
    extractor, folder = find_or_train(
        data,
        kind=f"lmsd-{chosen.kind}",
        augment=chosen.augment,
        images=chosen.images,
        seed=chosen.seed,
        folder=chosen.out,
    )
    right = extractor.recipe.accuracy
    about = "no label seen" if right is None else f"{right:.1%} of held-out images right"
    print(f"{extractor.name}: {about}; {folder}")
    return 0
