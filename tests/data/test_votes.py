"""Votes become shards: a pair once, a prompt in one split, the preferred picture first."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lmsd.data.shardset import ShardSet
from lmsd.data.votes import JOURNAL, PAIRS, Pair, VotesOptions, build_votes, votes_in
from lmsd.errors import UserError


def picture(level: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), level, np.uint8)).save(file, format="PNG")
    return file.getvalue()


def pair(number: int, *, reads: str = "text") -> Pair:
    prompt = str(number % 10) if reads == "label" else f"a thing {number % 10}"
    a, b = picture(number), picture(200 + number % 50)
    return Pair(prompt, "run/step@ema", number, 4, 1.0, reads, a, b)  # type: ignore[arg-type]


def voted(folder: Path, choices: list[str], *, reads: str = "text") -> list[Pair]:
    (folder / PAIRS).mkdir(parents=True)
    made = [pair(number, reads=reads) for number in range(len(choices))]
    lines = [
        json.dumps({"pair": each.key, "choice": choice}) for each, choice in zip(made, choices, strict=True)
    ]
    (folder / JOURNAL).write_text("".join(f"{line}\n" for line in lines))
    for each in made:
        (folder / PAIRS / f"{each.key}.json").write_text(each.text())
    return made


def test_the_preferred_picture_is_x_and_the_other_one_is_rejected(tmp_path: Path) -> None:
    pairs = voted(tmp_path / "votes", ["a", "b", "tie", "both_bad"] * 25)
    made = build_votes(tmp_path / "votes", tmp_path / "out", VotesOptions(val=0.3))
    assert sum(made.counts.values()) == 50
    assert made.undecided == {"tie": 25, "both_bad": 25}
    seen: dict[str, set[str]] = {}
    for split in ("train", "val"):
        data = ShardSet(str(tmp_path / "out"), image_size=8, channels=1, images=["rejected"])
        held = data.split_set(split)  # type: ignore[arg-type]
        rows = np.arange(len(held))
        texts = held.captions(rows)
        seen[split] = set(texts)
    assert seen["train"].isdisjoint(seen["val"])
    by_key = {each.key: each for each in pairs}
    keys = []
    for shard in (tmp_path / "out").glob("*.tar"):
        with tarfile.open(shard) as tar:
            names = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}  # type: ignore[union-attr]
        for name in names:
            key, _, kind = name.partition(".")
            if kind == "png":
                keys.append(key)
                number = by_key[key].seed
                won, lost = (
                    (by_key[key].a, by_key[key].b) if number % 4 == 0 else (by_key[key].b, by_key[key].a)
                )
                assert (names[f"{key}.png"], names[f"{key}.rejected.png"]) == (won, lost)
                assert names[f"{key}.txt"].decode() == by_key[key].prompt
    assert len(keys) == len(set(keys)) == 50


def test_the_same_votes_give_the_same_bytes(tmp_path: Path) -> None:
    voted(tmp_path / "votes", ["a", "b"] * 10)
    for name in ("one", "two"):
        build_votes(tmp_path / "votes", tmp_path / name, VotesOptions())
    one, two = ((tmp_path / name / "train-000000.tar").read_bytes() for name in ("one", "two"))
    assert one == two


def test_the_first_vote_of_a_pair_counts_and_an_unfinished_line_does_not(tmp_path: Path) -> None:
    keys = [each.key for each in voted(tmp_path, ["a", "b", "a"])]
    with (tmp_path / JOURNAL).open("a") as file:
        file.write(
            json.dumps({"pair": keys[0], "choice": "b"}) + "\n" + json.dumps({"pair": keys[1], "ch": 1})[:-9]
        )
    assert votes_in(tmp_path) == dict(zip(keys, ["a", "b", "a"], strict=True))


def test_votes_on_classes_keep_their_class(tmp_path: Path) -> None:
    voted(tmp_path / "votes", ["a"] * 30, reads="label")
    build_votes(tmp_path / "votes", tmp_path / "out", VotesOptions(val=0.0))
    data = ShardSet(str(tmp_path / "out"), image_size=8, channels=1, images=["rejected"])
    batch = data.stream(seed=0)[np.arange(8)]
    assert batch.label is not None
    assert batch.text is None
    assert batch.extra["rejected"].shape == batch.x.shape


def test_what_cannot_be_built_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no votes\.jsonl"):
        build_votes(tmp_path, tmp_path / "out", VotesOptions())
    voted(tmp_path / "ties", ["tie", "both_bad"])
    with pytest.raises(UserError, match="nothing to learn from yet"):
        build_votes(tmp_path / "ties", tmp_path / "out", VotesOptions())
    lost = voted(tmp_path / "lost", ["a", "b"])
    (tmp_path / "lost" / PAIRS / f"{lost[0].key}.json").unlink()
    with pytest.raises(UserError, match="take its vote out"):
        build_votes(tmp_path / "lost", tmp_path / "out", VotesOptions())
    (tmp_path / "ties" / JOURNAL).write_text("what\n")
    with pytest.raises(UserError, match="line 1, is no vote"):
        build_votes(tmp_path / "ties", tmp_path / "out", VotesOptions())
    assert not (tmp_path / "out").exists()


def test_a_class_in_other_digits_is_that_class(tmp_path: Path) -> None:
    pairs = voted(tmp_path / "votes", ["a", "b"] * 10, reads="label")
    journal = (tmp_path / "votes" / JOURNAL).read_text()
    for each in pairs[10:]:  # the second ten of the same classes, in Arabic digits or with a zero before them
        other = replace(each, prompt=chr(0x660 + int(each.prompt)) if each.seed % 2 else f"0{each.prompt}")
        (tmp_path / "votes" / PAIRS / f"{other.key}.json").write_text(other.text())
        journal = journal.replace(each.key, other.key)
    (tmp_path / "votes" / JOURNAL).write_text(journal)
    build_votes(tmp_path / "votes", tmp_path / "out", VotesOptions(val=0.4))
    split: dict[bytes, set[str]] = {}
    for shard in (tmp_path / "out").glob("*.tar"):
        with tarfile.open(shard) as tar:
            for name in tar.getnames():
                if name.endswith(".cls"):
                    label = tar.extractfile(name).read()  # type: ignore[union-attr]
                    split.setdefault(label, set()).add(shard.name.partition("-")[0])
    assert sorted(split) == [b"%d" % label for label in range(10)]
    assert sorted(map(len, split.values())) == [1] * 10
    assert set.union(*split.values()) == {"train", "val"}


def test_a_class_that_is_no_number_says_which_pair(tmp_path: Path) -> None:
    (made,) = voted(tmp_path / "votes", ["a"], reads="label")
    path = tmp_path / "votes" / PAIRS / f"{made.key}.json"
    path.write_text(path.read_text().replace('"prompt": "0"', '"prompt": "three"'))
    with pytest.raises(UserError, match=f"{made.key}.json.*take its vote out"):
        build_votes(tmp_path / "votes", tmp_path / "out", VotesOptions())
