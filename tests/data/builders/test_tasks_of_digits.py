"""Parts of the digits as tasks: `where=` on their classes."""

from lmsd.data.builders import BuildOptions, Preparation, build
from lmsd.data.shardset import ShardSet


def test_digits_below_five(tmp_path):
    build("digits", tmp_path / "few", options=BuildOptions(pictures=Preparation(where="cls<5")))
    data = ShardSet(str(tmp_path / "few"), image_size=8, channels=1)
    for split in ("train", "val", "test"):
        held = data.split_set(split)
        assert set(held.labels(range(len(held))).tolist()) == {0, 1, 2, 3, 4}
