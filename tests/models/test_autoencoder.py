"""Pretrained autoencoders as codecs: what is read from where, what is frozen, what is refused."""

import io
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from lmsd.errors import UserError
from lmsd.models.autoencoder import TAEF2, Autoencoder, _decoder, _encoder
from lmsd.models.backbones import MLPBackbone
from lmsd.models.frozen import twin
from lmsd.models.generator import Generator
from lmsd.models.statistics import check, measured
from lmsd.process import Flow, Process
from lmsd.rng import Rng
from lmsd.types import Batch, Sizes

given = pytest.mark.skipif(
    not Path(os.environ.get("LMSD_TEST_DATA", "-")).is_dir(),
    reason="LMSD_TEST_DATA names no folder of inputs",
)


def inputs(name: str) -> Path:
    return Path(os.environ["LMSD_TEST_DATA"]) / name


def emoji(count: int, split: str) -> torch.Tensor:
    """The first images of a split, [count,3,128,128] in [-1,1]."""
    found = []
    with tarfile.open(inputs(f"data/emoji/{split}-000000.tar")) as archive:
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
        (lambda: Autoencoder(pickled), "holds pickled weights only"),
        (lambda: Autoencoder(other), "do not fit its config.json"),
        (lambda: Autoencoder(left_over(tmp_path, tiny)), "do not fit config.json, see strange.weight"),
        (lambda: Autoencoder(tmp_path / "list.pth"), "only safetensors are read"),
        (lambda: Autoencoder(tiny, tile=10), "codec.tile=10 must be a multiple of 8"),
        (lambda: Autoencoder(dc_folder(tmp_path), tile=64), "attention sees the whole image"),
        (lambda: Autoencoder(tmp_path / "dc", posterior="drawn"), "with no distribution of latents"),
        (
            lambda: Autoencoder(tiny, statistics=tmp_path / "none.json"),
            "or holds no statistics",
        ),
    ]


def left_over(folder: Path, tiny: Path) -> Path:
    """The file of `tiny`, with one tensor more."""
    (folder / "left").mkdir()
    (folder / "left" / "config.json").write_bytes((tiny / "config.json").read_bytes())
    state = load_file(tiny / "diffusion_pytorch_model.safetensors")
    save_file({**state, "strange.weight": torch.zeros(1)}, folder / "left" / "model.safetensors")
    return folder / "left" / "model.safetensors"


def dc_folder(folder: Path) -> Path:
    from diffusers import AutoencoderDC

    model = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=8,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 16),
        decoder_block_out_channels=(8, 16),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        scaling_factor=0.5,
    )
    model.save_pretrained(folder / "dc")
    return folder / "dc"


def test_a_tiny_and_a_dc_autoencoder_are_the_folders_own(tmp_path):
    from diffusers import AutoencoderDC, AutoencoderTiny

    torch.manual_seed(0)
    blocks = {"encoder_block_out_channels": (8,) * 2, "decoder_block_out_channels": (8,) * 2}
    counts = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    AutoencoderTiny(latent_channels=3, scaling_factor=2.0, **blocks, **counts).save_pretrained(tmp_path / "t")
    tiny, model = Autoencoder(tmp_path / "t"), AutoencoderTiny.from_pretrained(tmp_path / "t")
    dc, other = Autoencoder(dc_folder(tmp_path)), AutoencoderDC.from_pretrained(tmp_path / "dc")
    with torch.no_grad():
        z = tiny.encode(IMAGES)
        torch.testing.assert_close(z, model.encode(IMAGES).latents * 2)
        torch.testing.assert_close(tiny.decode(z), model.decode(z / 2).sample)
        z = dc.encode(IMAGES)
        torch.testing.assert_close(z, other.encode(IMAGES).latent * 0.5)
        torch.testing.assert_close(dc.decode(z), other.decode(z / 0.5).sample)
    assert (tiny.shape_of((3, 16, 16)), dc.shape_of((3, 16, 16))) == ((3, 8, 8), (4, 8, 8))


def test_a_file_is_read_with_the_configuration_beside_it(tiny):
    with torch.no_grad():
        file = Autoencoder(tiny / "diffusion_pytorch_model.safetensors").encode(IMAGES)
        assert torch.equal(file, Autoencoder(tiny).encode(IMAGES))


def test_statistics_of_a_file_give_mean_0_and_deviation_1_and_belong_to_one_codec(tiny, tmp_path):
    codec = Autoencoder(tiny)
    found = measured(codec, IMAGES.split(1), codec.fingerprint)
    assert found.images == 2
    found.save(tmp_path / "s.json")
    z = Autoencoder(tiny, statistics=tmp_path / "s.json").encode(IMAGES)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)
    check(z)
    replace(found, fingerprint="another").save(tmp_path / "other.json")
    with pytest.raises(UserError, match="was measured with codec another"):
        Autoencoder(tiny, statistics=tmp_path / "other.json")


def test_latents_that_are_off_are_refused_beyond_doubt():
    z = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    check(z)
    for off in (z * 0.8, z * 1.2, z + 0.2):
        with pytest.raises(UserError, match=r"3 of 3 channels .* are off .*lmsd data statistics"):
            check(off)
    z[:, 1] *= 1.3
    with pytest.raises(UserError, match=r"1 of 3 channels .*channel 1: mean .*, standard deviation 1\.3"):
        check(z)


def test_a_drawn_posterior_is_a_function_of_the_position(tiny):
    codec = Autoencoder(tiny, posterior="drawn")
    generator = Generator(MLPBackbone(Sizes(3, 8), width=8, depth=1), Process(Flow()), codec=codec)
    batch = Batch(IMAGES, torch.tensor([5, 9]))
    plain, drawn = generator.encode(batch).x, generator.encode(batch, Rng(0, batch.position)).x
    other = batch.rows(torch.tensor([1, 0]))
    assert torch.equal(drawn.flip(0), generator.encode(other, Rng(0, other.position)).x)
    std = codec.raw(IMAGES)[1] * codec.scale
    away = (drawn - plain) / std
    assert 0.8 < float(away.std()) < 1.2
    assert torch.equal(plain, Autoencoder(tiny).encode(IMAGES))


def test_a_large_image_is_decoded_in_tiles_as_if_at_once(tmp_path):
    """PSNR over 40 dB at 512 pixels, of weights that have learned enough to give images back."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"block_out_channels": (8, 16), "norm_num_groups": 4, "latent_channels": 4}
    model = AutoencoderKL(**kinds, **sizes, mid_block_add_attention=False)
    optimizer, rng = torch.optim.Adam(model.parameters(), 4e-3), torch.Generator().manual_seed(0)

    def smooth(count: int, size: int) -> torch.Tensor:
        coarse = torch.rand(count, 3, size // 16, size // 16, generator=rng) * 2 - 1
        return F.interpolate(coarse, size=(size, size), mode="bicubic").clamp(-1, 1)

    for _ in range(40):
        x = smooth(4, 32)
        loss = (model.decode(model.encode(x).latent_dist.mean).sample - x).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path / "vae")
    whole, tiles = Autoencoder(tmp_path / "vae"), Autoencoder(tmp_path / "vae", tile=128)
    with torch.no_grad():
        z = whole.encode(smooth(1, 512))
        one, other = whole.decode(z), tiles.decode(z)
    assert one.std() > 0.2
    assert float(-10 * ((one - other) / 2).square().mean().log10()) > 40


def test_what_does_not_fit_is_refused_in_a_sentence(tmp_path, random_taef2, tiny):
    for make, said in refusals(tmp_path, random_taef2, tiny):
        with pytest.raises(UserError, match=said) as refused:
            make()
        assert "\n" not in str(refused.value)


@given
def test_taef2_gives_emoji_back():
    """Mean PSNR over 48 test emoji of 128 pixels; without the branch over the whole map it is near 17 dB."""
    codec, x = TAEF2(inputs("weights")), emoji(48, "test")
    with torch.no_grad():
        z = torch.cat([codec.encode(part) for part in x.split(8)])
        back = torch.cat([codec.decode(part) for part in z.split(8)]).clamp(-1, 1)
    assert z.shape == (48, 32, 16, 16)
    psnr = -10 * ((x - back) / 2).square().flatten(1).mean(1).log10()
    assert float(psnr.mean()) >= 31.0
    assert float(psnr.min()) > 25.0


@given
def test_taef2_without_its_branch_is_refused(tmp_path):
    for half in ("encoder", "decoder"):
        state = torch.load(inputs(f"weights/taef2_{half}.pth"), weights_only=True)
        kept = {name: value for name, value in state.items() if ".pool." not in name}
        assert len(kept) < len(state)
        torch.save(kept, tmp_path / f"taef2_{half}.pth")
    with pytest.raises(UserError, match="does not hold the layers of taef2"):
        TAEF2(tmp_path)
