"""Pretrained autoencoders as codecs: what is read from where, what is frozen, what is refused."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lmsd.errors import UserError
from lmsd.models.autoencoder import TAEF2, Autoencoder, _decoder, _encoder
from lmsd.models.backbones import MLPBackbone
from lmsd.models.frozen import twin
from lmsd.models.generator import Generator
from lmsd.process import Flow, Process
from lmsd.types import Batch, Sizes

given = pytest.mark.skipif(
    not Path(os.environ.get("LMSD_TEST_DATA", "-")).is_dir(),
    reason="LMSD_TEST_DATA names no folder of inputs",
)


def inputs(name: str) -> Path:
    return Path(os.environ["LMSD_TEST_DATA"]) / name


def emoji(count: int) -> torch.Tensor:
    """The first images of the val split, [count,3,128,128] in [-1,1]."""
    found = []
    with tarfile.open(inputs("data/emoji/val-000000.tar")) as archive:
        members = [member for member in archive if member.name.endswith(".webp")][:count]
        for member in members:
            picture = Image.open(io.BytesIO(archive.extractfile(member).read())).convert("RGB")
            found.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1)
    return torch.stack(found)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """An AutoencoderKL with random weights, small enough to be made here."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vae")
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        latent_channels=3,
        sample_size=16,
        scaling_factor=0.5,
        shift_factor=0.25,
    )
    model.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def random_taef2(tmp_path_factory) -> Path:
    """Weights of taef2's shapes that learned nothing."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("taef2")
    for name, half in (("encoder", _encoder(64, 32)), ("decoder", _decoder(64, 32))):
        torch.save(half.state_dict(), folder / f"taef2_{name}.pth")
    return folder


IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_an_autoencoder_is_the_folders_own(tiny):
    from diffusers import AutoencoderKL

    model = AutoencoderKL.from_pretrained(tiny)
    codec = Autoencoder(tiny)
    with torch.no_grad():
        z = codec.encode(IMAGES)
        torch.testing.assert_close(z, (model.encode(IMAGES).latent_dist.mean - 0.25) * 0.5)
        torch.testing.assert_close(codec.decode(z), model.decode(z / 0.5 + 0.25).sample)
    assert codec.shape_of((3, 16, 16)) == z.shape[1:] == (3, 8, 8)
    assert codec.image_shape_of((3, 8, 8)) == (3, 16, 16)
    assert codec.bound is None
    assert z.is_contiguous()


def test_statistics_are_given_by_hand(tiny):
    plain = Autoencoder(tiny, scale=1.0, shift=0.0).encode(IMAGES)
    scale, shift = [1.0, 2.0, 3.0], [0.1, 0.2, 0.3]
    z = Autoencoder(tiny, scale=scale, shift=shift).encode(IMAGES)
    for channel, (gain, away) in enumerate(zip(scale, shift, strict=True)):
        torch.testing.assert_close(z[:, channel], (plain[:, channel] - away) * gain)
    with pytest.raises(UserError, match=r"codec\.scale has 2 numbers, and .* 3 channels"):
        Autoencoder(tiny, scale=[1.0, 2.0])
    with pytest.raises(UserError, match=r"codec\.scale=-1 must be above 0"):
        Autoencoder(tiny, scale=-1)


@pytest.mark.parametrize("kind", ["autoencoder", "taef2"])
def test_it_is_frozen_shared_and_no_part_of_a_state_but_its_fingerprint(kind, tiny, random_taef2):
    codec = Autoencoder(tiny) if kind == "autoencoder" else TAEF2(random_taef2)
    channels, side, _ = codec.shape_of((3, 16, 16))
    generator = Generator(
        MLPBackbone(Sizes(channels, side), width=8, depth=1), Process(Flow()), codec=codec
    ).train()
    assert not list(codec.parameters())
    assert not codec.training
    assert not codec.model.training
    state = generator.state_dict()
    assert [name for name in state if name.startswith("codec")] == ["codec._extra_state"]
    assert twin(generator).codec is codec
    batch = generator.encode(Batch(IMAGES, torch.arange(2)))
    assert not batch.x.requires_grad
    z = batch.x.clone().requires_grad_()
    generator.decode(z).square().sum().backward()
    assert z.grad.abs().max() > 0  # rewards climb through it
    generator.load_state_dict(state)
    other = Autoencoder(tiny, shift=0.5) if kind == "autoencoder" else TAEF2(random_taef2, scale=2.0)
    strange = Generator(MLPBackbone(Sizes(channels, side), width=8, depth=1), Process(Flow()), codec=other)
    with pytest.raises(UserError, match="the weights were trained in latents of s"):
        strange.load_state_dict(state)


def test_other_weights_have_another_fingerprint(random_taef2, tmp_path):
    torch.manual_seed(1)
    state = {f"encoder.{k}": v for k, v in _encoder(64, 32).state_dict().items()}
    state |= {f"decoder.{k}": v for k, v in _decoder(64, 32).state_dict().items()}
    save_file(state, tmp_path / "both.safetensors")
    one, other = TAEF2(random_taef2), TAEF2(tmp_path / "both.safetensors")
    assert one.told["fingerprint"] != other.told["fingerprint"]
    with pytest.raises(UserError, match="latents of fingerprint"):
        other.load_state_dict(one.state_dict())


def test_it_works_in_float32_under_autocast(tiny):
    generator = Generator(
        MLPBackbone(Sizes(3, 8), width=8, depth=1), Process(Flow()), codec=Autoencoder(tiny)
    )
    batch = Batch(IMAGES, torch.arange(2))
    plain = generator.encode(batch).x
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(generator.encode(batch).x, plain)
        images = generator.decode(plain)
    assert torch.equal(images, generator.decode(plain))


def refusals(tmp_path: Path, taef2: Path, tiny: Path):
    """(what to build, what must be said)."""
    half = torch.load(taef2 / "taef2_encoder.pth", weights_only=True)
    (lone := tmp_path / "lone").mkdir()
    torch.save(half, lone / "taef2_encoder.pth")
    (short := tmp_path / "short").mkdir()
    torch.save(dict(list(half.items())[1:]), short / "taef2_encoder.pth")
    torch.save(half, short / "taef2_decoder.pth")
    (broken := tmp_path / "broken.pth").write_bytes(b"no weights")
    torch.save([1, 2], tmp_path / "list.pth")
    (pickled := tmp_path / "pickled").mkdir()
    (pickled / "config.json").write_bytes((tiny / "config.json").read_bytes())
    (pickled / "diffusion_pytorch_model.bin").write_bytes(b"")
    (unet := tmp_path / "unet").mkdir()
    (unet / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    (other := tmp_path / "other").mkdir()
    card = (tiny / "config.json").read_text()
    (other / "config.json").write_text(card.replace('"layers_per_block": 1', '"layers_per_block": 2'))
    name = "diffusion_pytorch_model.safetensors"
    (other / name).write_bytes((tiny / name).read_bytes())
    return [
        (lambda: TAEF2(lone), "holds neither taef2_decoder.pth nor taef2_decoder.safetensors"),
        (lambda: TAEF2(short), "does not hold the layers of taef2"),
        (lambda: TAEF2(taef2 / "taef2_encoder.pth"), "does not hold the layers of taef2"),
        (lambda: TAEF2(tmp_path / "nowhere"), "is no folder and no file of weights"),
        (lambda: TAEF2(broken), "broken.pth cannot be read as weights"),
        (lambda: TAEF2(tmp_path / "list.pth"), "list.pth cannot be read as weights"),
        (lambda: TAEF2(taef2).shape_of((1, 16, 16)), "takes images of 3 channels: set data.channels=3"),
        (lambda: TAEF2(taef2).shape_of((3, 28, 28)), "28x28 pixels do not divide by its factor, 8"),
        (lambda: Autoencoder(tmp_path), "config.json is not there or cannot be read"),
        (lambda: Autoencoder(unet), "holds a UNet2DModel and no AutoencoderKL"),
        (lambda: Autoencoder(pickled), "pickles are not read"),
        (lambda: Autoencoder(other), "weights do not fit its config.json"),
    ]


def test_what_does_not_fit_is_refused_in_a_sentence(tmp_path, random_taef2, tiny):
    for make, said in refusals(tmp_path, random_taef2, tiny):
        with pytest.raises(UserError, match=said) as refused:
            make()
        assert "\n" not in str(refused.value)


@given
def test_taef2_gives_emoji_back():
    """Mean PSNR over 6 held-out emoji; without the branch over the whole map it would be near 17 dB."""
    codec, x = TAEF2(inputs("weights")), emoji(6)
    with torch.no_grad():
        z = codec.encode(x)
        back = codec.decode(z).clamp(-1, 1)
    assert z.shape == (6, 32, 16, 16)
    assert 0.6 < float(z.std()) < 1.0
    psnr = -10 * ((x - back) / 2).square().flatten(1).mean(1).log10()
    assert float(psnr.mean()) > 30.5
    assert float(psnr.min()) > 25.0
