"""Rows of a batch, and images as levels."""

import numpy as np
import pytest
import torch

from lmsd.data import transforms
from lmsd.types import Batch, levels, scale


def batch(size: int = 6) -> Batch:
    return Batch(
        x=torch.rand(size, 1, 2, 2, generator=torch.Generator().manual_seed(0)),
        position=torch.arange(10, 10 + size),
        text=[f"caption {i}" for i in range(size)],
        label=torch.arange(size) % 3,
        extra={"group": torch.arange(size) // 2},
    )


@pytest.mark.parametrize(
    "index", [slice(2, 5), slice(None), torch.tensor([4, 0, 4]), torch.tensor([], dtype=torch.int64)]
)
def test_rows_are_the_same_samples_in_every_field(index: slice | torch.Tensor) -> None:
    found, places = batch().rows(index), torch.arange(6)[index].tolist()
    assert found.position.tolist() == [10 + place for place in places]
    assert found.text == [f"caption {place}" for place in places]
    assert found.label is not None
    assert found.label.tolist() == [place % 3 for place in places]
    assert found.extra["group"].tolist() == [place // 2 for place in places]
    assert found.x.tolist() == [batch().x[place].tolist() for place in places]


def test_rows_of_a_batch_of_images_alone_have_neither_captions_nor_classes() -> None:
    found = Batch(torch.zeros(3, 1, 2, 2), torch.arange(3)).rows(torch.tensor([2]))
    assert (found.text, found.label, dict(found.extra)) == (None, None, {})
    assert found.position.tolist() == [2]


def test_pieces_in_a_row_are_the_batch() -> None:
    pieces = batch().split(3)
    assert [text for piece in pieces for text in piece.text or ()] == batch().text
    assert torch.equal(torch.cat([piece.x for piece in pieces]), batch().x)


def test_every_level_comes_back_and_what_lies_between_goes_to_the_nearest() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(levels(scale(every)), every)
    between = torch.linspace(-1, 1, 9973)
    assert torch.equal(levels(between), ((between.double() + 1) * 127.5).round().to(torch.uint8))
    assert float((scale(levels(between)) - between).abs().max()) <= 1 / 255 + 1e-6
    assert levels(torch.tensor([-7.0, 1.0001, 3.0])).tolist() == [0, 255, 255]


def test_levels_are_scaled_as_the_training_stream_scales_them() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    stream = transforms.scale(pixels)
    assert torch.equal(scale(torch.from_numpy(pixels)).permute(0, 3, 1, 2), stream)


def test_levels_leave_their_input_and_its_graph_alone() -> None:
    x = torch.tensor([-2.0, 0.5], requires_grad=True)
    assert not levels(x).requires_grad
    assert x.tolist() == [-2.0, 0.5]
