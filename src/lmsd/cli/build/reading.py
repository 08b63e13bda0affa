"""What a conditioner reads, against what the data hold: checked and told when an experiment is built."""

from lmsd.data.shards import Split
from lmsd.data.shardset import ShardSet
from lmsd.errors import UserError
from lmsd.models.conditioner import Conditioner, LabelConditioner
from lmsd.ranks import launched_rank


def check_condition(conditioner: Conditioner, data: ShardSet) -> None:
    """Refuse a conditioner that reads what the training shards do not contain."""
    index = data.index("train")
    if conditioner.reads == "label" and not index.labels:
        ways = "conditioner=text for their captions" if index.captions else "conditioner=none"
        raise UserError(f"conditioner=label: these shards have no class labels (KEY.cls); take {ways}")
    if conditioner.reads == "text" and not index.captions:
        ways = "conditioner=label for their classes" if index.labels else "conditioner=none"
        raise UserError(f"conditioner: these shards have no captions (KEY.txt, KEY.json); take {ways}")
    splits: tuple[Split, ...] = ("train", "val")
    for split in splits:
        if isinstance(conditioner, LabelConditioner) and data.has(split):
            check_labels(conditioner, data, split)


def check_labels(conditioner: LabelConditioner, data: ShardSet, split: Split) -> None:
    """Refuse classes beyond the embedding table, whose last row stands for no class."""
    held = data.split_set(split)
    labels = held.labels(range(len(held)))
    low, high = (0, 0) if labels is None or not len(labels) else (int(labels.min()), int(labels.max()))
    if not 0 <= low <= high < conditioner.classes:
        way = f"take conditioner.classes={high + 1}" if low >= 0 else "they count from 0: build them again"
        said = f"the {split} shards have classes {low} to {high}"
        raise UserError(f"conditioner.classes={conditioner.classes}: {said}; {way}")


def note_words(reader: Conditioner, captions: list[str], context: str, *, foreign: bool) -> None:
    """Print how many captions are cut, with the vocabulary as it is now.

    context: what says how long they may be, before the number of tokens; foreign: it came with
    the weights of another run; then also print words it only knows in pieces.
    """
    if launched_rank():
        return
    if cut := reader.cut(captions):
        told = f"{context}{reader.length}{' tokens' * context.endswith(' ')}"
        print(f"note: {cut:,} of {len(captions):,} captions are cut at {told}")
    if foreign:
        strange = reader.unknown(captions)
        if strange:
            listed = f"{', '.join(strange[:5])}{' ...' * (len(strange) > 5)}"
            print(f"note: {len(strange):,} words of the captions are new to the weights, in pieces: {listed}")
