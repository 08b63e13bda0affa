"""The scorer that a configuration asks for: what training mirrors is sought mirrored."""

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from lmsd.cli.build import validate


class Pictures:
    """Ten pictures of noise for training; one of them, mirrored, among ten held-out ones."""

    def __init__(self, split: str, *, real: bool = False) -> None:
        train = torch.rand(10, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
        held_out = torch.rand(10, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
        held_out[4] = train[7].flip(-1)
        self.x, self.hash = train if split == "train" else held_out, split

    def __len__(self) -> int:
        return 10

    def images(self, indices: Sequence[int]) -> Tensor:
        return self.x[list(indices)]

    def captions(self, indices: Sequence[int]) -> list[str]:
        return ["noise" for _ in indices]

    def labels(self, indices: Sequence[int]) -> None:
        return None


@pytest.mark.parametrize("flip", [True, False])
def test_flips_of_training_reach_the_search_for_copies(flip, tmp_path, monkeypatch):
    monkeypatch.setattr(validate, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(validate, "extractor_of", lambda settings, data: None)
    evaluate = {"checker": None, "extractor": {}, "neighbors": True}
    config = OmegaConf.create(
        {
            "conditioner": {},
            "evaluate": evaluate,
            "data": {"train": {"flip": flip}, "channels": 3, "shards": "x"},
        }
    )
    scorer = validate.evaluator(config, SimpleNamespace(split_set=Pictures), "val", n=None)
    assert scorer.mirrored is flip
    assert scorer.shared.near == scorer.shared.exact == int(flip)
    training = validate.evaluator(config, SimpleNamespace(split_set=Pictures), "train", n=None)
    assert training.train is training.shared is None
