import io
import json
import pickle
import tarfile

import numpy as np
import pytest
import webdataset
from PIL import Image
from tiny_photographs import pixels

from lmsd.data.builders import BuildOptions, Preparation, build
from lmsd.data.builders.cifar10 import BATCHES, TEST, WORDS, cifar10_source
from lmsd.errors import UserError

FOLDER = "cifar-10-batches-bin"


def record(label, image):
    """One record as the site describes it: the label, then 1024 red, 1024 green and 1024 blue bytes."""
    return bytes([label]) + b"".join(image[..., channel].tobytes() for channel in range(3))


def batches(each=4):
    names = (*BATCHES, TEST)
    return {
        name: b"".join(record((7 * b + i) % 10, pixels(100 * b + i)) for i in range(each))
        for b, name in enumerate(names)
    }


def archive(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def official(path, changes=None):
    members = {f"{FOLDER}/batches.meta.txt": "\n".join(WORDS).encode(), f"{FOLDER}/readme.html": b"<html>"}
    members |= {
        f"{FOLDER}/{name}": data for name, data in (batches() | (changes or {})).items() if data is not None
    }
    return archive(path, members)


def test_an_official_archive_becomes_shards(tmp_path):
    path = official(tmp_path / "cifar-10-binary.tar.gz")
    options = BuildOptions(path=path, pictures=Preparation(val=0.4))
    manifest = json.loads(build("cifar10", tmp_path / "out", options=options).read_text())
    assert manifest["counts"]["test"] == 4
    assert manifest["counts"]["train"] + manifest["counts"]["val"] == 20
    assert manifest["counts"]["val"] > 0
    assert (manifest["classes"], manifest["image_size"]) == (10, 32)
    shards = sorted(str(shard) for shard in (tmp_path / "out").glob("test-*.tar"))
    found = {}
    for sample in webdataset.WebDataset(shards, shardshuffle=False):
        image = np.asarray(Image.open(io.BytesIO(sample["png"])))
        found[image.tobytes()] = (sample["txt"].decode(), int(sample["cls"]))
    for i in range(4):
        label = (35 + i) % 10
        article = "an" if label < 2 else "a"
        assert found[pixels(500 + i).tobytes()] == (f"a photo of {article} {WORDS[label]}", label)


def test_the_pickled_archive_is_refused_and_never_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    members = {"cifar-10-batches-py/data_batch_1": pickle.dumps(Bomb())}
    with pytest.raises(UserError, match=r"pickled version.*cifar-10-binary\.tar\.gz"):
        cifar10_source(archive(tmp_path / "cifar-10-python.tar.gz", members))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_batch_3.bin": None}, "has no data_batch_3.bin"),
        ({"data_batch_3.bin": b"x" * 3072}, "records of 3073 bytes"),
        ({"data_batch_3.bin": b""}, "records of 3073 bytes"),
        ({"test_batch.bin": b"\x0a" + b"x" * 3072}, "has the label 10"),
    ],
)
def test_a_wrong_batch_is_named(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        cifar10_source(official(tmp_path / "c.tar.gz", changes))


def test_damaged_and_missing_archives_are_named(tmp_path):
    whole = official(tmp_path / "c.tar.gz")
    (tmp_path / "cut.tar.gz").write_bytes(whole.read_bytes()[:20_000])
    (tmp_path / "text.tar.gz").write_text("hello")
    for path, message in (
        (None, "needs path="),
        (tmp_path, "is not a file"),
        (tmp_path / "no.tar.gz", "is not a file"),
        (tmp_path / "cut.tar.gz", "cannot be read as an archive"),
        (tmp_path / "text.tar.gz", "cannot be read as an archive"),
    ):
        with pytest.raises(UserError, match=message):
            cifar10_source(path)
