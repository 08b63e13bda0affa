"""A pipeline's folder in other forms and places: shards, variants, precisions, parts that stay on the CPU."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline, UNet2DConditionModel
from tiny_pipelines import make

from lmsd.errors import UserError
from lmsd.models.folder import Folder
from lmsd.models.frozen import twin
from lmsd.models.pipeline import from_pipeline
from lmsd.rng import Rng
from lmsd.types import Batch

BATCH = Batch(torch.zeros(2, 3, 32, 32), torch.arange(2), ["a red circle", "a blue star"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make("sd15", tmp_path_factory.mktemp("folder") / "sd15")


@pytest.fixture
def copied(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "sd15"))


def seen(generator) -> torch.Tensor:
    """What the net says of one noise."""
    x = Rng(0, torch.arange(2)).normal(generator.shape, "x")
    return generator(x, torch.full((2,), 500.0), generator.condition(BATCH))


def test_shards_and_a_lone_variant_are_the_same_weights(folder, copied):
    net = UNet2DConditionModel.from_pretrained(folder / "unet")
    shutil.rmtree(copied / "unet")
    net.save_pretrained(copied / "unet", max_shard_size="60KB", variant="fp16")
    assert len(list((copied / "unet").glob("*.fp16-0000*.safetensors"))) > 1
    expected = seen(from_pipeline(folder, image_size=32))
    assert torch.equal(seen(from_pipeline(copied, image_size=32)), expected)
    with pytest.raises(UserError, match="vae/ has no weights of variant=fp16"):
        from_pipeline(copied, image_size=32, variant="fp16")


def test_precisions_are_those_that_were_chosen(folder):
    generator = from_pipeline(folder, image_size=32, precision="bfloat16", net_precision="bfloat16")
    assert {p.dtype for p in generator.net.parameters()} == {torch.bfloat16}
    text = {b.dtype for b in generator.conditioner.buffers() if b.is_floating_point()}
    assert text == {torch.bfloat16}
    assert {b.dtype for b in generator.codec.model.buffers()} == {torch.bfloat16}
    found, expected = seen(generator), seen(from_pipeline(folder, image_size=32))
    assert found.dtype == torch.float32
    assert 0 < float((found - expected).abs().max()) < 0.1 * float(expected.abs().max())
    z = generator.encode(BATCH).x
    assert (z.dtype, generator.decode(z).dtype) == (torch.float32, torch.float32)
    with pytest.raises(UserError, match="precision='half' is none of float32, bfloat16, float16"):
        from_pipeline(folder, precision="half")  # type: ignore[arg-type]


def test_frozen_parts_stay_where_they_are_and_are_there_once(folder):
    generator = from_pipeline(folder, image_size=32, on_cpu=["text", "codec"])
    other = twin(generator)
    assert other.conditioner.encoders[0].model is generator.conditioner.encoders[0].model
    assert other.codec is generator.codec
    assert [name for name, _ in generator.named_parameters() if not name.startswith("net.")] == []
    expected = generator.decode(BATCH.x[:, :1].new_zeros(1, *generator.shape))
    generator.to("meta")
    devices = {b.device.type for b in generator.conditioner.buffers()}
    assert devices == {b.device.type for b in generator.codec.model.buffers()} == {"cpu"}
    assert next(generator.net.parameters()).device.type == generator.codec.scale.device.type == "meta"
    assert torch.equal(generator.codec.images(torch.zeros(1, *generator.shape)).clamp(-1, 1), expected)


def test_another_text_encoder_refuses_a_checkpoint(folder, copied):
    make("sd2", copied.parent / "other")
    generator = from_pipeline(folder, image_size=32)
    state = generator.conditioner.state_dict()
    generator.conditioner.load_state_dict(state)
    state["_extra_state"] = {"fingerprint": "0"}
    with pytest.raises(UserError, match="trained with other text encoders"):
        generator.conditioner.load_state_dict(state)


def test_sd3_without_its_t5_has_zeros_in_its_place(tmp_path):
    folder = make("sd3", tmp_path / "sd3")
    whole = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    whole.save_pretrained(tmp_path / "small")
    tokens = from_pipeline(tmp_path / "small", image_size=32).condition(BATCH).tokens
    assert tokens.shape == (2, 77 + 256, 64)
    assert not bool(tokens[:, 77:].any())
    expected, *_ = whole.encode_prompt(BATCH.text, None, None)
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-5)


def test_one_file_and_a_broken_index_are_refused(folder, copied):
    with pytest.raises(UserError, match="it is one file, and folders are read"):
        Folder(folder / "unet" / "diffusion_pytorch_model.safetensors")
    (copied / "model_index.json").write_text(json.dumps([]) + "]")
    with pytest.raises(UserError, match=r"model_index\.json is not there or cannot be read"):
        Folder(copied)
    (copied / "model_index.json").unlink()
    with pytest.raises(UserError, match=r"it holds no model_index\.json"):
        Folder(copied)


def test_an_image_size_that_does_not_fit_is_refused(folder):
    with pytest.raises(UserError, match="33x33 pixels do not divide by its factor, 2"):
        from_pipeline(folder, image_size=33)
    assert from_pipeline(folder).image_shape == (3, 32, 32)


def test_a_variant_needs_none_of_the_plain_shards(tmp_path):
    unet = make("sd15", tmp_path / "sd15") / "unet"
    name = "diffusion_pytorch_model"
    (unet / f"{name}.safetensors").rename(unet / f"{name}.fp16.safetensors")
    shard = {"weight_map": {"a": f"{name}-00001-of-00001.safetensors"}}
    (unet / f"{name}.safetensors.index.json").write_text(json.dumps({"metadata": {}, **shard}))
    with pytest.raises(UserError, match="lacks"):
        Folder(unet.parent).model("unet", ["UNet2DConditionModel"], torch.float32)
    Folder(unet.parent, "fp16").model("unet", ["UNet2DConditionModel"], torch.float32)
