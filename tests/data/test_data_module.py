"""The DataModule: one global sequence for every split of the work, and a resume that continues it."""

import io
import itertools
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from profiles import SWAPPED, matrix
from tars import data_module, encoded, flip_byte, jpeg, members_of, picture, write_shards, write_tar

from lmsd.data.reader import DamagedSample
from lmsd.data.stream import Stream
from lmsd.engine.datamodule import ShardDataModule
from lmsd.errors import UserError

SIZES = [17, 5, 13, 2, 11]  # 48 samples in 5 shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, SIZES)
    write_shards(folder, [4, 3], split="val")
    return folder


def module_of(folder, **options) -> ShardDataModule:
    options = {"batch_size": 24, "image_size": 8, "window": 2, "seed": 3} | options
    return data_module(folder, **options)


def take(module: ShardDataModule, batches: int) -> list:
    loader = iter(module.train_dataloader())
    return [next(loader) for _ in range(batches)]


def sequence(folder, world: int, steps: int, **options) -> tuple[list[int], list[str], torch.Tensor]:
    """Positions, captions and images of the global batches, put together from all ranks."""
    micro = options.get("micro_batches", 1)
    ranks = [take(module_of(folder, world=world, rank=r, **options), steps * micro) for r in range(world)]
    batches = [b for k in range(steps) for rank in ranks for b in rank[k * micro : (k + 1) * micro]]
    positions = [int(p) for b in batches for p in b.position]
    return positions, [t for b in batches for t in b.text], torch.cat([b.x for b in batches])


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("micro", [1, 3])
def test_world_size_and_micro_batches_do_not_change_the_global_sequence(shards, world, micro):
    options = {"flip": True, "color": 0.2, "batch_size": 72}
    expected = sequence(shards, 1, 2, **options)
    found = sequence(shards, world, 2, micro_batches=micro, **options)
    assert found[0] == expected[0] == list(range(144))
    assert found[1] == expected[1]
    assert torch.equal(found[2], expected[2])


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_do_not_change_the_sequence(shards, workers):
    expected = sequence(shards, 1, 4, flip=True)
    found = sequence(shards, 1, 4, num_workers=workers, flip=True)
    assert found[:2] == expected[:2]
    assert torch.equal(found[2], expected[2])


def test_each_sample_comes_once_an_epoch_for_three_epochs(tmp_path):
    write_shards(tmp_path, [13, 1, 29, 7, 3])  # 53 samples
    module = module_of(tmp_path, batch_size=53)
    epochs = [batch.text for batch in take(module, 3)]
    for texts in epochs:
        assert sorted(texts) == sorted(f"picture {k}" for k in range(53))
    assert epochs[0] != epochs[1] != epochs[2]


def test_memory_and_whole_reading_do_not_change_what_comes(shards, monkeypatch):
    kept = take(module_of(shards), 8)
    unkept = take(module_of(shards, memory_gb=0.0), 8)
    monkeypatch.setattr("lmsd.data.shardset._HELD", 0)
    offsets = take(module_of(shards, memory_gb=0.0), 8)
    for a, b, c in zip(kept, unkept, offsets, strict=True):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.x, c.x)
        assert a.text == b.text == c.text
        assert torch.equal(a.label, b.label)


def test_members_equal_plain_webdataset(shards):
    module = module_of(shards)
    data = webdataset.WebDataset(list(module.shards.index("train").shards), shardshuffle=False).decode("rgb8")
    expected = {s["txt"]: (s["jpg"], s["cls"]) for s in data}
    for batch in take(module, 2):
        for x, text, label in zip(batch.x, batch.text, batch.label, strict=True):
            pixels, cls = expected[text]
            assert np.array_equal(((x + 1) * 127.5).round().byte().permute(1, 2, 0).numpy(), pixels)
            assert label == cls


def test_random_kills_and_resizes_lose_and_repeat_nothing(shards):
    draw = np.random.default_rng(0)
    truth = sequence(shards, 1, 8)[1]
    for _ in range(2):
        position, seen = 0, []
        while len(seen) < 8 * 24:
            world, micro = draw.choice([1, 2, 4]), int(draw.choice([1, 3]))
            steps = int(min(draw.integers(1, 5), 8 - len(seen) // 24))
            ranks = []
            for rank in range(world):
                module = module_of(shards, world=int(world), rank=rank, micro_batches=micro)
                module.load_state_dict(module.state_dict() | {"position": position})
                # one batch more is read than used, as a prefetching loop does
                ranks.append(take(module, (steps + 1) * micro)[: steps * micro])
            for k in range(steps):
                seen += [t for rank in ranks for b in rank[k * micro : (k + 1) * micro] for t in b.text]
                module.advance(24)
            position = module.state_dict()["position"]
        assert seen == truth


def test_the_batch_size_may_change_between_runs(shards):
    truth = sequence(shards, 1, 4)[1]
    module = module_of(shards)
    module.advance(24)
    state = module.state_dict()
    other = module_of(shards, batch_size=8)
    other.load_state_dict(state)
    assert [t for b in take(other, 9) for t in b.text] == truth[24:]


def test_the_state_is_plain_and_loads_with_weights_only(shards):
    module = module_of(shards)
    module.advance(48)
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    assert state == module.state_dict()
    assert set(state) == {
        "version",
        "position",
        "seed",
        "window",
        "index_hash",
        "batch_size",
        "shards",
        "decode",
    }
    assert module.epoch == 1


def test_other_data_seed_or_window_is_refused_with_the_difference(shards, tmp_path):
    state = module_of(shards).state_dict()
    write_shards(tmp_path, [4])
    for module, words in (
        (module_of(shards, seed=4), "seed was 3 and is 4"),
        (module_of(shards, window=5), "window was 2 and is 5"),
        (module_of(tmp_path), "4 gone .*; 48 samples in 5 shards then, 4 samples in 1"),
    ):
        with pytest.raises(UserError, match=words):
            module.load_state_dict(state)
        assert module.position == 0


def test_other_shards_may_begin_an_epoch_of_their_own(shards, tmp_path):
    state = module_of(shards).state_dict() | {"position": 50}
    write_shards(tmp_path, [*SIZES, 4])
    with pytest.raises(UserError, match=r"1 new \(train-000005.tar\).* 52 samples in 6 shards now"):
        module_of(tmp_path).load_state_dict(state)
    module = module_of(tmp_path, on_change="new_epoch", batch_size=52)
    module.load_state_dict(state)
    assert (module.position, module.epoch) == (52, 1)
    assert sorted(take(module, 1)[0].text) == sorted([f"picture {k}" for k in range(52)])
    with pytest.raises(UserError, match="seed was 3 and is 4"):  # that would be another run
        module_of(tmp_path, on_change="new_epoch", seed=4).load_state_dict(state)


def test_an_epoch_of_repeated_samples_is_over_when_all_repeats_are(tmp_path):
    write_shards(tmp_path, [4])
    (tmp_path / "train-000000.tar").rename(tmp_path / "train-repeat10-000000.tar")
    for index in tmp_path.glob("*.npz"):
        index.unlink()
    module = module_of(tmp_path, on_change="new_epoch", batch_size=4)
    module.advance(12)
    assert module.epoch == 0
    module.load_state_dict({**module.state_dict(), "index_hash": "that of other shards"})
    assert (module.position, module.epoch) == (40, 1)


def test_a_batch_that_does_not_divide_is_refused(shards):
    with pytest.raises(UserError, match="take a multiple of 10"):
        module_of(shards, world=5, micro_batches=2).train_dataloader()
    with pytest.raises(UserError, match="micro-batches: take a multiple of 5"):
        module_of(shards, micro_batches=5)
    with pytest.raises(UserError, match="batch_size=0"):
        module_of(shards, batch_size=0)


def test_the_loader_leaves_the_global_random_state_alone(shards):
    state = torch.random.get_rng_state()
    take(module_of(shards, flip=True), 2)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_later_batches_do_not_overwrite_earlier_ones(shards):
    batches = take(module_of(shards), 6)
    copies = [batch.x.clone() for batch in batches]
    again = take(module_of(shards), 6)
    assert all(torch.equal(a, b.x) for a, b in zip(copies, again, strict=True))
    assert len({batch.x.data_ptr() for batch in batches}) == 6


def test_a_damaged_sample_stops_or_is_replaced_alike_on_every_rank(tmp_path):
    paths = write_shards(tmp_path, [12, 12])
    module_of(tmp_path).shards.index("train")
    start, _ = members_of(Path(paths[0]))["000005.jpg"]
    flip_byte(Path(paths[0]), start + 40)
    with pytest.raises(UserError, match=r"'000005' of the shard .*data\.train\.on_error=skip"):
        take(module_of(tmp_path), 1)
    alone = take(module_of(tmp_path, on_error="skip"), 1)[0]
    assert (alone.extra["substituted"] > 0).sum() == 1
    assert alone.extra["substituted"].max() == 6  # the sixth of the split
    slot = int(alone.extra["substituted"].nonzero())
    assert "picture 5" not in alone.text
    order = module_of(tmp_path)
    stream = order.train_dataloader().dataset
    assert isinstance(stream, Stream)
    shard, sample = stream.order(np.array([slot + 1]))
    assert alone.text[slot] == f"picture {shard[0] * 12 + sample[0]}"
    for world in (2, 3):
        assert sequence(tmp_path, world, 1, on_error="skip")[1] == alone.text
        # several ranks never stop one by one: the guard ends the run for all, after a checkpoint
        assert sequence(tmp_path, world, 1, on_error="stop")[1] == alone.text


def test_split_sets_give_every_sample_by_number(shards):
    held = module_of(shards).shards.split_set("val")
    assert len(held) == 7
    assert held.captions(range(7)) == [f"picture {k}" for k in range(7)]
    assert held.labels([6, 2]).tolist() == [6, 2]
    images = held.images(torch.tensor([3, 0]))
    assert images.shape == (2, 3, 8, 8)
    assert images.dtype == torch.float32
    data = webdataset.WebDataset(sorted(map(str, shards.glob("val-*.tar"))), shardshuffle=False).decode(
        "rgb8"
    )
    pixels = np.stack([s["jpg"] for s in itertools.islice(data, 4)])[[3, 0]]
    assert np.array_equal(((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy(), pixels)
    for bad in ([7], [-1]):
        with pytest.raises(UserError, match="has 7 samples"):
            held.images(bad)


def test_the_hash_of_a_split_names_data_and_preparation(shards):
    first = module_of(shards).shards.split_set("val").hash
    assert module_of(shards, seed=9, batch_size=8).shards.split_set("val").hash == first
    assert module_of(shards, image_size=16).shards.split_set("val").hash != first
    assert module_of(shards, channels=1).shards.split_set("val").hash != first
    assert module_of(shards).shards.split_set("train").hash != first


def test_absent_splits_are_asked_for(shards, tmp_path):
    with pytest.raises(UserError, match=r"give data\.test=SHARDS"):
        module_of(shards).shards.split_set("test")
    write_shards(tmp_path, [2], split="val")
    with pytest.raises(UserError, match="names no train shard"):
        module_of(tmp_path).train_dataloader()
    elsewhere = module_of(shards, test=tmp_path)
    assert len(elsewhere.shards.split_set("test")) == 2
    with pytest.raises(UserError, match="both train and val"):
        module_of(shards, val=str(shards / "train-000000.tar"))


def test_grey_images_have_one_channel(tmp_path):
    members = []
    for number in range(4):
        members += [(f"{number}.png", encoded(picture(number, 8, 1))), (f"{number}.txt", b"x")]
    write_tar(tmp_path / "digits.tar", members)
    module = module_of(tmp_path, batch_size=4, channels=1)
    x = module.shards.split_set("train").images(range(4))
    assert x.shape == (4, 1, 8, 8)
    assert np.array_equal(((x[2, 0] + 1) * 127.5).round().byte().numpy(), picture(2, 8, 1)[..., 0])
    assert take(module, 1)[0].x.shape == (4, 1, 8, 8)


def test_what_the_data_lack_is_none(tmp_path):
    for folder, suffix, content in (("words", "txt", b"hello"), ("classes", "cls", b"3")):
        (tmp_path / folder).mkdir()
        write_tar(tmp_path / folder / "a.tar", [("a.png", encoded(picture(1))), (f"a.{suffix}", content)])
    words, classes = (module_of(tmp_path / name, batch_size=1) for name in ("words", "classes"))
    assert take(words, 1)[0].label is None
    assert words.shards.split_set("train").labels([0]) is None
    batch = take(classes, 1)[0]
    assert batch.text is None
    assert batch.label.tolist() == [3]
    with pytest.raises(UserError, match="no captions, only classes"):
        classes.shards.split_set("train").captions([0])


def test_caption_fields_are_checked_at_the_start(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.png", encoded(picture(1))), ("a.json", b'{"alt": "words"}')])
    with pytest.raises(UserError, match=r"give data\.caption_key= one of alt"):
        module_of(tmp_path, batch_size=1).train_dataloader()
    with pytest.raises(UserError, match="there are: alt"):
        module_of(tmp_path, batch_size=1, caption_key="title").train_dataloader()
    assert take(module_of(tmp_path, batch_size=1, caption_key="alt"), 1)[0].text == ["words"]


def test_a_sampler_of_someone_else_is_refused(shards):
    with pytest.raises(UserError, match="use_distributed_sampler=False"):
        module_of(shards).train_dataloader().dataset[0]


def test_options_are_checked(shards):
    with pytest.raises(UserError, match=r"data\.channels=4"):
        module_of(shards, channels=4)
    with pytest.raises(UserError, match=r"data\.train: on_error='ignore' is none of stop, skip"):
        module_of(shards, on_error="ignore")


def test_real_photographs_stream(test_data):
    module = module_of(test_data / "data" / "emoji", batch_size=64, image_size=32)
    batch = take(module, 1)[0]
    assert batch.x.shape == (64, 3, 32, 32)
    assert all(text.startswith("an emoji of") for text in batch.text)
    assert batch.x[:, :, 0, 0].mean() > 0.9  # on white
    assert len(module.shards.index("train")) == 3256


@pytest.fixture
def meaning(tmp_path):
    """Four samples: a profile, an orientation by XMP, a marked caption, and one that is as it was."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'
    members = []
    for number, options in enumerate([{"icc_profile": matrix(SWAPPED, None)}, {"xmp": xmp}, {}, {}]):
        mark = "\ufeff" if number == 2 else ""
        image = Image.fromarray(picture(number, 8))
        members += [
            (f"{number}.jpg", encoded(image, "JPEG", quality=95, **options)),
            (f"{number}.txt", f"{mark}picture {number}".encode()),
        ]
    write_tar(tmp_path / "a.tar", members)
    return tmp_path


def test_a_run_that_began_with_the_old_decoder_continues_only_when_told_how(meaning, shards, caplog):
    began = module_of(meaning, batch_size=4).state_dict()
    del began["decode"]  # as it was before version 2 of the index
    with pytest.raises(
        UserError, match=r"3 of 4 training samples \(75\.00%\) decode differently .*data\.decode=old"
    ):
        module_of(meaning, batch_size=4).load_state_dict(began)
    old, new = (module_of(meaning, batch_size=4, decode=word) for word in ("old", "new"))
    old.load_state_dict(began)
    assert "decode differently" not in caplog.text
    new.load_state_dict(began)
    assert (
        "3 of 4 training samples (75.00%) decode differently than before, by data.decode=new" in caplog.text
    )
    with pytest.raises(UserError, match=r"data\.decode=old"):  # nor does it leave the old one by itself
        module_of(meaning, batch_size=4).load_state_dict(old.state_dict())
    module_of(meaning, batch_size=4).load_state_dict(new.state_dict())
    unchanged = module_of(shards).state_dict()
    del unchanged["decode"]
    module_of(shards).load_state_dict(unchanged)  # where nothing decodes otherwise nothing is asked
    before, after = (take(module, 1)[0] for module in (old, new))
    stored = dict(zip(before.text, before.x, strict=True))
    assert "\ufeffpicture 2" in stored
    assert set(after.text) == {f"picture {k}" for k in range(4)}
    differs = {
        text for text, x in zip(after.text, after.x, strict=True) if not torch.equal(x, stored.get(text, x))
    }
    assert differs == {"picture 0", "picture 1"}
    hashes = {module_of(meaning, decode=word).shards.split_set("train").hash for word in ("old", "new", None)}
    assert len(hashes) == 2  # statistics of the one are none of the other


def test_what_only_decoding_shows_is_part_of_what_decodes_otherwise(tmp_path):
    sound = encoded(picture(0, 64), "JPEG", quality=95)
    extra = sound[:-2] + b"\x12\x34" * 9 + sound[-2:]  # refused by the decoder of then
    broken = sound[: len(sound) * 3 // 4]  # and by today's
    write_tar(
        tmp_path / "a.tar",
        [
            (f"{number}.{suffix}", content)
            for number, image in enumerate([sound, extra, broken, sound])
            for suffix, content in (("jpg", image), ("txt", b"one"))
        ],
    )
    began = module_of(tmp_path, batch_size=4).state_dict() | {"decode": "old"}
    with pytest.raises(UserError, match=r"1 of 4 training samples \(25\.00%\) decode differently"):
        module_of(tmp_path, batch_size=4).load_state_dict(began)
    module_of(tmp_path, batch_size=4, decode="new").load_state_dict(began)


def test_of_several_lines_one_is_drawn_anew_in_every_epoch_and_alike_on_every_rank(tmp_path):
    members = []
    for number in range(6):
        members += [(f"{number}.png", encoded(picture(number))), (f"{number}.txt", b"one\n\ntwo\r\n three ")]
    write_tar(tmp_path / "a.tar", members)
    joined, first = (take(module_of(tmp_path, batch_size=6, captions=way), 1)[0] for way in ("join", "first"))
    assert set(joined.text) == {"one two three"}
    assert set(first.text) == {"one"}
    drawn = sequence(tmp_path, 1, 20, batch_size=6, captions="draw")[1]
    assert min(drawn.count(word) for word in ("one", "two", "three")) >= 25
    assert sequence(tmp_path, 3, 20, batch_size=6, captions="draw")[1] == drawn
    assert sequence(tmp_path, 1, 20, batch_size=6, captions="draw", memory_gb=0.0)[1] == drawn
    assert module_of(tmp_path, captions="draw").shards.split_set("train").captions([0]) == ["one"]


def test_the_advice_for_a_damaged_sample_helps_where_it_is_given(tmp_path, caplog):
    paths = write_shards(tmp_path, [12])
    write_shards(tmp_path, [2], split="val")
    module_of(tmp_path).prepare_data()
    for path, key in ((Path(paths[0]), "000005.jpg"), (tmp_path / "val-000000.tar", "000001.jpg")):
        flip_byte(path, members_of(path)[key][0] + 40)
    with pytest.raises(DamagedSample) as held:
        module_of(tmp_path, on_error="skip").shards.split_set("val").images([0, 1])
    assert "on_error" not in str(held.value)  # it is about training
    take(module_of(tmp_path, on_error="skip", batch_size=12), 1)
    assert "'000005'" in caplog.text
    assert "on_error" not in caplog.text  # it was followed already
    command = re.search(r"\((tar --wildcards --delete -f val-000000\.tar '000001\.\*')\)", str(held.value))
    subprocess.run(["bash", "-c", command.group(1)], cwd=tmp_path, check=True)
    assert len(module_of(tmp_path).shards.split_set("val").images([0])) == 1


def test_what_is_worth_telling_is_told_when_data_are_prepared(tmp_path, caplog):
    members = [("a.jpg", jpeg(1)), ("a.txt", b""), ("b.jpg", jpeg(2)), ("b.txt", b"one\ntwo")]
    write_tar(tmp_path / "a.tar", members)
    module_of(tmp_path, batch_size=2).prepare_data()
    assert "train: 1 empty captions, trained as no words at all (a.tar: a)" in caplog.text
    assert "train: 1 captions of several lines (a.tar: b)" in caplog.text
