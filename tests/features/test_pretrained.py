"""CLIP and DINOv2 by transformers: tiny random models written to a folder and read back."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmsd.errors import UserError
from lmsd.features.pretrained import CLIPExtractor, DINOv2Extractor


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("clip")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = small | {"vocab_size": 40, "max_position_embeddings": 12, "eos_token_id": 2, "bos_token_id": 1}
    vision = small | {"image_size": 24, "patch_size": 8}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    words = ["<pad>", "<s>", "</s>", "<unk>", "a", "red", "blue", "circle", "star"]
    inner = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>"}
    PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(folder)
    card = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    (folder / "preprocessor_config.json").write_text(json.dumps(card))
    return folder


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory):
    from transformers import Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("dinov2")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28}
    Dinov2Model(Dinov2Config(**small, patch_size=14)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"crop_size": {"height": 28, "width": 28}}))
    return folder


def test_clip_images_are_normalized_as_the_folder_says(clip_folder):
    """At the model's own size nothing is resized, so that transformers itself gives the same by hand."""
    from transformers import CLIPModel

    extractor = CLIPExtractor(clip_folder)
    pixels = torch.randint(0, 256, (5, 3, 24, 24), generator=torch.Generator().manual_seed(0)).byte()
    features, logits = extractor(pixels)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    by_hand = (pixels.float() / 255 - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        found = CLIPModel.from_pretrained(clip_folder).eval()(
            pixel_values=by_hand, input_ids=torch.tensor([[1, 4, 2]])
        )
    torch.testing.assert_close(
        features / features.norm(dim=1, keepdim=True), found.image_embeds, rtol=1e-4, atol=1e-5
    )
    assert logits.shape == (5, 0)
    torch.testing.assert_close(extractor(pixels.float() / 127.5 - 1)[0], features, rtol=1e-4, atol=1e-5)


def test_clip_reads_texts_one_by_one_or_together(clip_folder):
    extractor = CLIPExtractor(clip_folder)
    captions = ["a red circle", "a blue star", "star"]
    together = extractor.texts(captions)
    assert together.shape == (3, 8)
    for place, caption in enumerate(captions):
        torch.testing.assert_close(extractor.texts([caption])[0], together[place], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_dinov2_gives_the_class_token_at_its_own_size(dino_folder):
    from transformers import Dinov2Model

    extractor = DINOv2Extractor(dino_folder)
    assert extractor.size == 28
    pixels = torch.randint(0, 256, (3, 3, 28, 28), generator=torch.Generator().manual_seed(0)).byte()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    by_hand = (pixels.float() / 255 - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        expected = Dinov2Model.from_pretrained(dino_folder).eval()(by_hand).pooler_output
    torch.testing.assert_close(extractor(pixels)[0], expected, rtol=1e-4, atol=1e-5)
    assert extractor(pixels[:, :1, :16, :16])[0].shape == (3, 16), "gray and small images are brought to it"
    assert extractor.texts(["a"]) is None


def test_the_name_carries_the_weights(clip_folder, dino_folder):
    assert CLIPExtractor(clip_folder).name.startswith("clip@")
    one, other = DINOv2Extractor(dino_folder), CLIPExtractor(clip_folder)
    assert one.name == f"dinov2@{one.sha256[:4]}"
    assert one.sha256 != other.sha256


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("preprocessor_config.json", {"image_mean": [0.1, 0.1, 0.1]}),
        ("config.json", {"initializer_range": 0.5}),
    ],
)
def test_the_name_carries_what_images_are_prepared_by(clip_folder, tmp_path, name, change):
    other = shutil.copytree(clip_folder, tmp_path / "other")
    assert CLIPExtractor(other).sha256 == CLIPExtractor(clip_folder).sha256
    card = json.loads((other / name).read_text())
    (other / name).write_text(json.dumps(card | change))
    assert CLIPExtractor(other).sha256 != CLIPExtractor(clip_folder).sha256


def test_another_kind_of_model_is_refused(clip_folder, dino_folder):
    with pytest.raises(UserError, match="is of type dinov2, not clip: name another folder"):
        CLIPExtractor(dino_folder)
    with pytest.raises(UserError, match="is of type clip, not dinov2"):
        DINOv2Extractor(clip_folder)


def test_weights_that_are_not_there_are_not_drawn(dino_folder, tmp_path):
    part = shutil.copytree(dino_folder, tmp_path / "part")
    tensors = load_file(part / "model.safetensors")
    del tensors["layernorm.weight"]
    save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lack 1 tensors of this dinov2 model, the first of them layernorm"):
        DINOv2Extractor(part)


def test_a_model_without_its_tokenizer_is_refused(clip_folder, tmp_path):
    part = shutil.copytree(clip_folder, tmp_path / "part", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(UserError, match="no tokenizer at"):
        CLIPExtractor(part)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no dinov2 model at .*config.json and \*.safetensors"):
        DINOv2Extractor(tmp_path)
