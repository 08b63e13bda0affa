"""Runs on buckets: what takes them, and that they resume and share batches as runs on squares do."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from lmsd.cli.build.buckets import check_buckets
from lmsd.cli.build.experiment import generator
from lmsd.cli.config.compose import load
from lmsd.data.builders.write import write_split
from lmsd.errors import UserError

UNET = ["net=unet_conv", "net.widths=[16,32]", "net.patch=2"]
DENOISING = "objective=denoising"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*UNET, "objective=lmsd"], "objective=denoising"),
        (["net=mlp", DENOISING], "one has a place for every patch of one square"),
        (["net=uvit", DENOISING], "needs a net of any size, net=unet_conv"),
        ([*UNET, DENOISING, "data.train.buckets=2"], "sides that are multiples of 4"),
        ([*UNET, DENOISING], ""),
        (["net=unet_pooled", "net.widths=[16,32]", DENOISING], ""),
        (["net=unet_text", "net.widths=[16,32]", DENOISING, "conditioner=text"], ""),
    ],
    ids=["adversary", "mlp", "uvit", "multiple", "conv", "pooled", "text"],
)
def test_what_takes_squares_alone_refuses_buckets(words, message):
    sized = [] if any("buckets" in word for word in words) else ["data.train.buckets=8"]
    config = load([*words, *sized, "data.image_size=32"])
    lead = generator(config)
    if not message:
        check_buckets(config, lead)
        return
    with pytest.raises(UserError, match=message):
        check_buckets(config, lead)
    config.data.train.buckets = None
    check_buckets(config, lead)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("shards"), np.random.default_rng(1)

    def samples(count):
        for number in range(count):
            height, width = [(30, 50), (40, 40), (50, 30)][int(rng.integers(3))]
            stream = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (height, width, 3)).astype(np.uint8)).save(stream, "PNG")
            yield {
                "__key__": f"{number:03d}",
                "png": stream.getvalue(),
                "txt": b"red" if number % 2 else b"blue",
            }

    write_split(folder, "train", samples(61), size=20)
    write_split(folder, "val", samples(16), size=20)
    return folder


def run(folder, *words, ranks=1):
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launcher, "-m", "lmsd.cli", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-2000:]
    return found.stdout


def words_of(shards):
    own = [
        f"data.shards={shards}",
        "data.image_size=32",
        "data.train.buckets=8",
        "batch_size=8",
        "images=160",
    ]
    return [*own, *UNET, DENOISING, "evaluate.n=0"]


@pytest.mark.slow
def test_a_run_on_buckets_is_killed_and_resumed_bit_for_bit(shards, tmp_path):
    assert "killed" in run(
        tmp_path, "verify-resume", *words_of(shards)
    )  # which fails when any number differs


@pytest.mark.slow
def test_two_ranks_are_one(shards, tmp_path):
    found = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        run(folder, "train", *words_of(shards), *(["devices=2"] if ranks == 2 else []), ranks=ranks)
        file = next(folder.glob("outputs/2*/checkpoints/step_000000160.ckpt"))
        state = torch.load(file, weights_only=True)
        found.append(tensors(state))
    one, two = found
    assert one.keys() == two.keys()
    assert len(one) > 10
    for name, value in one.items():
        assert torch.allclose(value.float(), two[name].float(), atol=1e-4), name
    drawn = ["sample", "run=last", "prompts=[red, blue]", "seeds=[0,1]"]
    run(folder, *drawn, "size=40x24", "out=wide.png")
    run(folder, *drawn, "out=square.png")
    run(folder, "sample", "again=wide.json", "out=twice.png")
    wide, square = (Image.open(folder / f"{name}.png") for name in ("wide", "square"))
    assert wide.width == square.width + 2 * (40 * 3 - 32 * 3)  # 96 pixels a tile: three times each
    assert (folder / "wide.png").read_bytes() == (folder / "twice.png").read_bytes()


def tensors(tree, name=""):
    if torch.is_tensor(tree):
        return {name: tree}
    if not isinstance(tree, dict):
        return {}
    return {k: v for key, part in tree.items() for k, v in tensors(part, f"{name}.{key}").items()}
