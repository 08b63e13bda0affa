"""Pairs of scenes and instructions: exact answers, and a reader that tells right from wrong."""

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lmsd.data.builders import BuildOptions, Drawing, Preparation, build
from lmsd.data.builders.edits import HELD, judged, random_edit, target_of
from lmsd.data.builders.shapes import render
from lmsd.data.shardset import ShardSet, Streaming
from lmsd.errors import UserError

SIZE = 16


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("edits") / "data"
    options = BuildOptions(
        shard_size=40,
        pictures=Preparation(image_size=SIZE),
        drawing=Drawing(train_count=60, val_count=8, test_count=40),
    )
    return build("edits", out, options=options).parent


def edits(count: int) -> list:
    return [random_edit(np.random.default_rng((0, 7, 2, index))) for index in range(count)]


def test_targets_are_right_sources_are_wrong_and_another_attribute_is_seen() -> None:
    asked = edits(300)
    targets = np.stack([target_of(edit, SIZE) for edit in asked])
    sources = np.stack([render(edit.source, SIZE) for edit in asked])
    found = judged(targets, asked)
    assert found["right"].all()
    assert found["kept"].all()
    assert not judged(sources, asked)["right"].any()
    grounds = {"black": "white", "gray": "black", "white": "gray"}
    other = np.stack(
        [
            render(replace(edit.target or edit.source, background=grounds[edit.source.background]), SIZE)
            for edit in asked
        ]
    )
    assert not judged(other, asked)["kept"].any()
    assert {edit.changed for edit in asked} == {"color", "shape", "size", "position", "remove"}


def test_only_test_has_the_pairs_that_are_held_out(shards: Path) -> None:
    told = {split: [] for split in ("train", "test")}
    for split, found in told.items():
        for path in sorted(shards.glob(f"{split}-*.tar")):
            with tarfile.open(path) as archive:
                found += [
                    json.loads(archive.extractfile(member).read())
                    for member in archive
                    if member.name.endswith(".json")
                ]
    assert len(told["train"]) == 60
    assert not any(each["held"] for each in told["train"])
    drawn = [random_edit(np.random.default_rng((0, 7, 0, index)), held=False) for index in range(500)]
    assert not any(edit.held for edit in drawn)
    assert any(edit.held for edit in edits(500))
    assert HELD


def test_source_instruction_and_target_are_read_as_one_sample(shards: Path) -> None:
    """By position, mirrored together."""
    data = ShardSet(str(shards), image_size=SIZE, images=["source"], train=Streaming(flip=True))
    batch = data.stream(seed=3)[np.arange(120)]
    plain = ShardSet(str(shards), image_size=SIZE, images=["source"]).stream(seed=3)[np.arange(120)]
    turned = (batch.x != plain.x).flatten(1).any(1)
    assert 30 < int(turned.sum()) < 90
    mirrored = torch.where(turned[:, None, None, None], plain.x.flip(-1), plain.x)
    assert torch.equal(batch.x, mirrored)
    ambiguous = (plain.extra["source"] == plain.extra["source"].flip(-1)).flatten(1).all(1)
    source = torch.where(turned[:, None, None, None], plain.extra["source"].flip(-1), plain.extra["source"])
    same = (batch.extra["source"] == source).flatten(1).all(1)
    assert bool((same | ambiguous | ~turned).all())
    held = data.split_set("test")
    asked, whole = edits(40), held.batch(range(40))
    sources = np.stack([render(edit.source, SIZE) for edit in asked])
    assert whole.text == [edit.instruction for edit in asked]
    shown = ((whole.extra["source"] + 1) * 127.5).round().permute(0, 2, 3, 1).numpy().astype(np.uint8)
    assert np.array_equal(shown, sources)
    assert judged(whole.x.numpy(), asked)["right"].all()
    told = ShardSet(str(shards), image_size=SIZE, caption_key="target").split_set("test").captions([0])
    assert told == [asked[0].target.caption() if asked[0].target else "nothing"]


def test_a_picture_that_is_not_there_is_named(shards: Path) -> None:
    data = ShardSet(str(shards), image_size=SIZE, images=["depth"])
    with pytest.raises(UserError, match=r"images=\[depth\]: sample 'test-000000' .* no member depth.png"):
        data.split_set("test").batch([0])
    with pytest.raises(UserError, match="the source 'edits' has no option mismatch"):
        build("edits", shards.parent / "x", options=BuildOptions(drawing=Drawing(mismatch=0.5)))
