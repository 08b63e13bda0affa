"""`lmsd evaluate` with extractors from files: the names that scores get, and which there are."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_home import Home, spoken

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def clip(folder: Path) -> None:
    """A random CLIP model with a tokenizer of four words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    text = SMALL | {"vocab_size": 8, "max_position_embeddings": 12, "eos_token_id": 2, "bos_token_id": 1}
    config = CLIPConfig(
        text_config=text, vision_config=SMALL | {"image_size": 16, "patch_size": 8}, projection_dim=8
    )
    CLIPModel(config).save_pretrained(folder)
    words = ["<pad>", "<s>", "</s>", "<unk>", "red", "blue", "circle", "star"]
    inner = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>"}
    PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(folder)


def dinov2(folder: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    Dinov2Model(Dinov2Config(**SMALL, image_size=28, patch_size=14)).save_pretrained(folder)


@pytest.mark.parametrize("build", [clip, dinov2])
def test_scores_of_an_extractor_from_files_carry_its_name(home: Home, build: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    kind, folder = build.__name__, tmp_path / "net"
    build(folder)
    words = ["run=outputs/first", "split=test", "n=32", "seeds=[0]", "steps=1"]
    spoken(["evaluate", *words, f"extractor={kind}", f"weights={folder}"])
    record = json.loads(Path("outputs/first/eval/test/metrics.json").read_text())
    name = record["extractor"]
    assert name.partition("@")[0] == kind
    assert record["setup"]["extractor_sha256"].startswith(name.partition("@")[2])
    assert record["setup"]["resize"] == "bicubic-antialias"
    assert f"extractor={kind} weights={folder}" in record["setup"]["options"]
    shown = {f"{score}{of}[{name}]" for score in ("clip_score",) for of in ("", "_real", "_shuffled")}
    assert {score for score in record["scores"] if score.startswith("clip")} == (
        shown if kind == "clip" else set()
    )
    assert "no distances: n=32 images make" in record["notes"][0]
