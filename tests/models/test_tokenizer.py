import json

import pytest

from lmsd.errors import UserError
from lmsd.models.tokenizer import SMALLEST, encode_caption, kept_of, train_tokenizer, unknown_words

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
CAPTIONS = [f"a handwritten {word}" for word in WORDS] * 3


@pytest.fixture(scope="module")
def text():
    return train_tokenizer(CAPTIONS, vocab=700)


def test_depends_on_the_counts_alone(text):
    """Hash tables are seeded anew every time, so a few repetitions show any order that leaks through."""
    for start in range(1, 6):
        assert train_tokenizer(CAPTIONS[start:] + CAPTIONS[:start], vocab=700) == text


def test_frequent_words_are_one_token(text):
    for word in WORDS:
        assert len(encode_caption(text, f"a handwritten {word}", 16)) == 5
    assert len({encode_caption(text, caption, 16) for caption in CAPTIONS}) == 10


@pytest.mark.parametrize("caption", ["a Zebra's 12 é ok 鳥!", "$ 100%", "x y"])
def test_any_caption_is_encoded_without_loss(text, caption):
    """No end token inside: that is what an unknown symbol would become."""
    ids = encode_caption(text, caption, 100)
    assert ids[0] == 0
    assert ids[-1] == 1
    assert 0 not in ids[1:]
    assert 1 not in ids[:-1]
    tokens = {i: token for token, i in json.loads(text)["model"]["vocab"].items()}
    from tokenizers import decoders

    joined = [tokens[i].replace("</w>", "") for i in ids[1:-1]]
    assert decoders.ByteLevel().decode(joined) == caption.lower().replace(" ", "")


def test_case_and_spaces_do_not_count(text):
    assert encode_caption(text, "A  handwritten\nSEVEN ", 16) == encode_caption(
        text, "a handwritten seven", 16
    )


def test_long_captions_are_cut_and_keep_their_end(text):
    ids = encode_caption(text, "a " * 50, 8)
    assert len(ids) == 8
    assert ids[-1] == 1
    assert encode_caption(text, "", 8) == (0, 1)


def test_vocabulary_stays_in_its_room():
    small = train_tokenizer(CAPTIONS, vocab=SMALLEST + 5)
    assert len(json.loads(small)["model"]["vocab"]) <= SMALLEST + 5
    assert max(encode_caption(small, "a handwritten seven", 50)) < SMALLEST + 5


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="no caption"):
        train_tokenizer([], vocab=600)
    with pytest.raises(UserError, match="vocab=100"):
        train_tokenizer(CAPTIONS, vocab=100)


def test_words_never_learned_are_named() -> None:
    text = train_tokenizer(["a red circle on the left"] * 9, vocab=600)
    assert unknown_words(text, ["a red circle.", "A purple Circle, purple elephant"]) == [
        "purple",
        "elephant",
    ]
    assert unknown_words(train_tokenizer(["a red circle"], vocab=514), ["a purple elephant"]) == []


def test_what_is_kept_of_a_caption_that_is_too_long():
    text = train_tokenizer(["a red circle and a blue ring"] * 3, vocab=600)
    assert kept_of(text, "a red circle", 16) == "a red circle"
    assert kept_of(text, "a red circle and a blue ring", 5) == "a red circle"
    whole = encode_caption(text, "a red circle", 16)
    assert encode_caption(text, "a red circle and a blue ring", 5) == whole
