"""Rewards by nets: the lmsd-cnn and CLIP, from local folders made here."""

import json
import warnings

import pytest
import torch
from torch.nn import functional as F

from lmsd.errors import UserError
from lmsd.features.cnn import LMSDCNN, Extractor, Recipe, save_extractor
from lmsd.features.training import Training
from lmsd.rewards import Aesthetic, ClassifierLogProb, TextAlignment, judge
from lmsd.types import Batch


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny random CLIP with a byte tokenizer, saved as transformers does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    words = {"<s>": 0, "</s>": 1, "<unk>": 2, "a": 3, "red": 4, "blue": 5, "ring": 6}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    ).save_pretrained(folder)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={
            **size,
            "vocab_size": 7,
            "max_position_embeddings": 8,
            "eos_token_id": 1,
            "bos_token_id": 0,
        },
        vision_config={**size, "image_size": 8, "patch_size": 4},
        projection_dim=12,
    )
    model = CLIPModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder, model.eval()


def pictures():
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def asked(text):
    return Batch(torch.zeros(len(text), 3, 8, 8), torch.arange(len(text)), text=text)


def test_alignment_is_clips_own_cosine(clip):
    """Against logits_per_image of the whole model, undone by its logit scale; no resize."""
    folder, model = clip
    images, text = pictures(), ["a red ring", "a blue ring", "a red ring"]
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    ids = torch.tensor([[0, 3, 4, 6, 1], [0, 3, 5, 6, 1], [0, 3, 4, 6, 1]])
    with torch.no_grad():
        out = model(input_ids=ids, pixel_values=((images + 1) / 2 - mean) / std)
    want = (out.logits_per_image / model.logit_scale.exp()).diagonal()
    found = TextAlignment(folder, clip=False)(images, asked(text))
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
    score = TextAlignment(folder)(images, asked(text))
    torch.testing.assert_close(score, 2.5 * want.clamp(min=0), rtol=1e-4, atol=1e-5)
    leaf = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(TextAlignment(folder, clip=False)(leaf, asked(text)).sum(), leaf)
    assert slope.abs().amax((1, 2, 3)).min() > 0


def test_captions_that_clip_cuts_are_told_once(clip):
    reward = TextAlignment(clip[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reward(pictures(), asked(["a red ring"] * 3))
    with pytest.warns(UserWarning, match="CLIP reads 8 tokens of a caption, and 'a a a a a a a' has more"):
        found = reward(pictures()[:1], asked(["a " * 6 + "a"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(found, reward(pictures()[:1], asked(["a " * 7 + "a"])))


def test_grey_images_of_another_size_are_fitted(clip):
    folder, _ = clip
    grey = pictures()[:, :1]
    big = F.interpolate(grey, (16, 16), mode="nearest")
    reward = TextAlignment(folder, clip=False)
    small, large = reward(grey, asked(["a ring"] * 3)), reward(big, asked(["a ring"] * 3))
    assert (small - large).abs().max() < 0.2


def test_aesthetic_is_its_layers_one_after_the_other(clip, tmp_path):
    from safetensors.torch import save_file

    folder, _ = clip
    layers = [torch.nn.Linear(12, 4), torch.nn.Linear(4, 1)]
    state = {}
    for number, layer in zip((2, 10), layers, strict=True):  # by number, not by the alphabet
        state |= {f"layers.{number}.{k}": v.detach().clone() for k, v in layer.state_dict().items()}
    save_file(state, tmp_path / "head.safetensors")
    reward = Aesthetic(folder, tmp_path / "head.safetensors")
    features = reward.model.images(pictures())
    assert features.norm(dim=1).allclose(torch.ones(3))
    torch.testing.assert_close(reward(pictures(), asked(["a"] * 3)), layers[1](layers[0](features))[:, 0])
    save_file(
        {"layers.0.weight": torch.ones(2, 12), "layers.0.bias": torch.ones(2)}, tmp_path / "two.safetensors"
    )
    with pytest.raises(UserError, match="no linear layers"):
        Aesthetic(folder, tmp_path / "two.safetensors")
    with pytest.raises(UserError, match=r"config\.json is missing"):
        TextAlignment(tmp_path)
    with pytest.raises(UserError, match="no aesthetic head"):
        Aesthetic(folder, tmp_path / "none.safetensors")


@pytest.mark.parametrize("target", ["label", "words"])
def test_the_classifiers_log_probability(target, tmp_path):
    torch.manual_seed(0)
    classes = ("0", "1", "2") if target == "label" else ("blue", "red", "ring")
    net = LMSDCNN(3, 8, 3).eval().requires_grad_(False)
    recipe = Recipe(
        target=target, classes=classes, channels=3, image_size=8, training=Training(0, 1, 0.0, "none", 0),
        train_images=0, data="", torch="",
    )  # fmt: skip
    weights = save_extractor(Extractor(net, recipe, ""), tmp_path)
    import hashlib

    card = json.loads(weights.with_suffix(".json").read_text())
    card["sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    weights.with_suffix(".json").write_text(json.dumps(card))
    reward, images = ClassifierLogProb(tmp_path), pictures().requires_grad_()
    logits = net(images)[1]
    if target == "label":
        label = torch.tensor([2, 0, 1])
        batch = Batch(images, torch.arange(3), label=label)
        want = torch.distributions.Categorical(logits=logits).log_prob(label)
    else:
        batch = asked(["a red ring", "a blue thing", "nothing"])
        truth = torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0]])
        want = torch.distributions.Bernoulli(logits=logits).log_prob(truth).sum(1)
    found = reward(images, batch)
    torch.testing.assert_close(found, want.clamp(min=-20))
    assert torch.autograd.grad(found.sum(), images)[0].abs().sum() > 0
    with pytest.raises(UserError, match="and these samples have none"):
        judge(reward, images.detach(), Batch(images, torch.arange(3)))
