import json

import pytest
import torch

from lmsd.errors import UserError
from lmsd.models.codes import Codes, encode_captions
from lmsd.models.conditioner import LabelConditioner, NullConditioner, PretrainedText, TextConditioner
from lmsd.models.tokenizer import encode_caption, train_tokenizer
from lmsd.types import Batch, Cond

CAPTIONS = [f"a {color} {shape}" for color in ("red", "blue") for shape in ("ring", "cross", "circle")]


def batch(text=None, label=None):
    size = len(text if text is not None else label)
    return Batch(torch.zeros(size, 1, 2, 2), torch.arange(size), text=text, label=label)


def assert_same(one: Cond, two: Cond) -> None:
    for name in ("tokens", "mask", "pooled", "label"):
        a, b = getattr(one, name), getattr(two, name)
        assert (a is None) == (b is None), name
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def text():
    torch.manual_seed(0)
    conditioner = TextConditioner(32, vocab=600, layers=2, heads=2, length=8)
    conditioner.fit(CAPTIONS)
    return conditioner


def test_null_conditioner_knows_nothing():
    assert NullConditioner()(batch(["a"]), torch.tensor([True])) == Cond()


def test_labels_are_rows_of_a_table_and_the_last_row_is_null():
    conditioner = LabelConditioner(3, 4)
    cond = conditioner(batch(label=torch.tensor([2, 0, 2])), torch.tensor([False, False, True]))
    assert cond.label.tolist() == [2, 0, 3]
    assert torch.equal(cond.pooled, conditioner.table.weight[[2, 0, 3]])
    cond.pooled[2].sum().backward()
    assert conditioner.table.weight.grad[3].abs().sum() > 0  # the null condition learns


def test_labels_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="no labels"):
        LabelConditioner(3)(batch(["a"]))
    with pytest.raises(UserError, match="3 classes"):
        LabelConditioner(3)(batch(label=torch.tensor([0, 3])))


def test_dropped_captions_are_the_empty_caption(text):
    drop = torch.tensor([True, False, True, False])
    names = ["a red ring", "a blue ring", "a blue ring", ""]
    dropped = text(batch(names), drop)
    assert_same(dropped, text(batch(["", "a blue ring", "", ""])))
    gap = (dropped.pooled[1] - dropped.pooled[0]).abs().max()
    assert gap > 0.1


def test_null_condition_learns(text):
    text.zero_grad()
    text(batch(["a red ring"]), torch.tensor([True])).pooled.square().sum().backward()
    assert text.encoder.get_input_embeddings().weight.grad[[0, 1]].abs().sum() > 0


def test_captions_differ_in_tokens_and_pooled(text):
    cond = text(batch(CAPTIONS))
    gaps = torch.cdist(cond.pooled, cond.pooled) + 99 * torch.eye(len(CAPTIONS))
    assert gaps.min() > 0.1
    assert cond.tokens.shape == (6, 8, text.token_dim)
    assert cond.mask.sum(1).tolist() == [len(encode_caption(text.tokenizer, c, 8)) for c in CAPTIONS]


def test_word_order_counts(text):
    cond = text(batch(["red ring blue cross", "blue ring red cross"]))
    assert (cond.pooled[0] - cond.pooled[1]).abs().max() > 1e-3


def test_words_that_learn_alike_stay_apart():
    """Adam moves all rows alike while only their common part has been learned; they must not become one."""
    torch.manual_seed(0)
    text = TextConditioner(64, vocab=600, layers=1, heads=2, length=12)
    captions = [f"a {color} ball on the {side}" for color in ("red", "blue") for side in ("left", "right")]
    text.fit(captions)
    head, goal = torch.nn.Linear(64, 64), torch.randn(64)
    optimizer = torch.optim.Adam([*text.parameters(), *head.parameters()], lr=2e-3)
    for _ in range(300):
        optimizer.zero_grad()
        (head(text.encode(captions)[2]) - goal).square().mean().backward()
        optimizer.step()
    left, right = text.encode(captions)[2][:2].detach()
    assert (left - right).norm() > 0.01 * left.norm()  # 0.024; with rows drawn at std 0.02 it is 0.0015


def test_rows_are_drawn_at_their_std():
    def rows(std):
        torch.manual_seed(0)
        text = TextConditioner(64, vocab=600, layers=1, heads=2, length=12, std=std)
        return text.encoder.get_input_embeddings().weight

    assert rows(1.0).std().item() == pytest.approx(1.0, rel=0.02)
    assert rows(0.02).std().item() == pytest.approx(0.02, rel=0.02)
    with pytest.raises(UserError, match="std=0"):
        rows(0)


def test_a_caption_means_the_same_in_any_company(text):
    together = text(batch(CAPTIONS))
    for i, caption in enumerate(CAPTIONS):
        assert_same(text(batch([caption])), together.map(lambda v, i=i: v[i : i + 1]))


def test_the_transformer_runs_once_for_each_distinct_caption(text):
    rows = []
    handle = text.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    cond = text(batch(["a red ring", "a blue cross"] * 64), torch.arange(128) < 3)
    handle.remove()
    assert rows == [3]  # two captions and the empty one
    assert len(cond.pooled) == 128
    torch.testing.assert_close(cond.pooled[4], cond.pooled[126])


def test_real_tokens_do_not_see_padding(text):
    """The same caption with more room: its real tokens are the same."""
    wide = TextConditioner(32, vocab=600, layers=2, heads=2, length=12)
    state = {k: v for k, v in text.state_dict().items() if "position_embedding" not in k}
    wide.load_state_dict(state, strict=False)
    with torch.no_grad():
        wide.encoder.embeddings.position_embedding.weight[:8] = (
            text.encoder.embeddings.position_embedding.weight
        )
    narrow, wider = text(batch(CAPTIONS)), wide(batch(CAPTIONS))
    torch.testing.assert_close(narrow.pooled, wider.pooled, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(narrow.tokens[narrow.mask], wider.tokens[wider.mask], atol=1e-5, rtol=1e-5)


def test_state_carries_the_tokenizer(text, tmp_path):
    torch.save(text.state_dict(), tmp_path / "state.pt")
    other = TextConditioner(32, vocab=600, layers=2, heads=2, length=8)
    with pytest.raises(UserError, match="fit"):
        other(batch(CAPTIONS))
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.tokenizer == text.tokenizer
    assert_same(other(batch(CAPTIONS)), text(batch(CAPTIONS)))


def test_captions_are_needed(text):
    with pytest.raises(UserError, match="no captions"):
        text(batch(label=torch.tensor([1])))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A tiny CLIP with our own tokenizer in transformers' format."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    path = tmp_path_factory.mktemp("clip")
    model = json.loads(train_tokenizer(CAPTIONS, vocab=600))["model"]
    CLIPTokenizer(vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]]).save_pretrained(path)
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=600,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=10,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        attention_dropout=0.3,
    )
    CLIPTextModel(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory):
    """A tiny T5 with dropout, which must stay off."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    path = tmp_path_factory.mktemp("t5")
    words = sorted({word for caption in CAPTIONS for word in caption.split()})
    tokenizer = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", *words])}, "<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(path)
    torch.manual_seed(0)
    config = T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.5)
    T5EncoderModel(config).save_pretrained(path)
    return path


def test_our_tokenizer_is_a_clip_tokenizer(clip_folder):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(clip_folder)
    text = train_tokenizer(CAPTIONS, vocab=600)
    for caption in [*CAPTIONS, "", "A Zebra's 12 rings", "ring  cross é"]:
        assert tuple(theirs(caption)["input_ids"]) == encode_caption(text, caption, 77)


@pytest.mark.parametrize("kind", ["clip", "t5"])
def test_pretrained_text_is_the_encoder_of_transformers(kind, clip_folder, t5_folder):
    from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

    path, loader = (clip_folder, CLIPTextModel) if kind == "clip" else (t5_folder, T5EncoderModel)
    conditioner = PretrainedText(path, kind=kind, length=10).train()
    cond = conditioner(batch(CAPTIONS[:2]), torch.tensor([False, True]))
    tokenizer, encoder = AutoTokenizer.from_pretrained(path), loader.from_pretrained(path).eval()
    for i, caption in enumerate([CAPTIONS[0], ""]):
        with torch.no_grad():
            out = encoder(
                **{k: v for k, v in tokenizer(caption, return_tensors="pt").items() if k != "token_type_ids"}
            )
        torch.testing.assert_close(
            cond.tokens[i][cond.mask[i]], out.last_hidden_state[0], atol=1e-5, rtol=1e-5
        )
        pooled = out.pooler_output[0] if kind == "clip" else out.last_hidden_state[0].mean(0)
        torch.testing.assert_close(cond.pooled[i], pooled, atol=1e-5, rtol=1e-5)


def test_pretrained_text_is_frozen_and_not_saved(clip_folder, t5_folder):
    clip = PretrainedText(clip_folder, length=10)
    assert list(clip.parameters()) == []
    assert set(clip.state_dict()) == {"_extra_state"}
    again = PretrainedText(clip_folder, length=10)
    again.load_state_dict(clip.state_dict())
    assert_same(again(batch(CAPTIONS)), clip(batch(CAPTIONS)))
    with pytest.raises(UserError, match="another encoder"):
        PretrainedText(t5_folder, kind="t5", length=10).load_state_dict(clip.state_dict())


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"config\.json"):
        PretrainedText(tmp_path / "nowhere")


@pytest.mark.parametrize("kind", ["clip", "t5"])
def test_cached_codes_are_the_encoders_in_half_precision(kind, clip_folder, t5_folder, tmp_path):
    path = clip_folder if kind == "clip" else t5_folder
    plain, cached = (PretrainedText(path, kind=kind, length=10) for _ in range(2))
    given = (plain.encode, plain.digest, plain.length)
    assert [encode_captions(CAPTIONS, tmp_path, *given) for _ in range(2)] == [1, 0]
    cached.codes = Codes(tmp_path, CAPTIONS, cached.digest, cached.length)
    assert len(cached.codes) == len(CAPTIONS) + 1
    drop = torch.tensor([False, True, False, False, False, False])
    one, other = plain(batch(CAPTIONS), drop), cached(batch(CAPTIONS), drop)
    assert torch.equal(one.mask, other.mask)
    assert torch.equal(one.tokens[one.mask].half().float(), other.tokens[other.mask])
    assert torch.equal(one.pooled.half().float(), other.pooled)
    assert_same(plain(batch(["a green ring"])), cached(batch(["a green ring"])))  # encoded as ever
    for captions, digest, length in (
        ([*CAPTIONS, "more"], plain.digest, 10),
        (CAPTIONS, "another", 10),
        (CAPTIONS, plain.digest, 9),
    ):
        with pytest.raises(UserError, match="lacks the codes of 1 of 1 parts"):
            Codes(tmp_path, captions, digest, length)
