"""A generator from its parts: what is handed over, and what does not fit."""

from functools import partial

import pytest
import torch
from torch.nn import functional

from lmsd.errors import UserError
from lmsd.models.backbones import LabelTransformer, MLPBackbone
from lmsd.models.codec import Codec, Shape
from lmsd.models.conditioner import LabelConditioner, TextConditioner
from lmsd.models.parts import from_parts
from lmsd.process import Article
from lmsd.spec import build


class Halves(Codec):
    """Four pixels to one place of four times the channels."""

    def shape_of(self, image: Shape) -> Shape:
        return 4 * image[0], image[1] // 2, image[2] // 2

    def image_shape_of(self, shape: Shape) -> Shape:
        return shape[0] // 4, 2 * shape[1], 2 * shape[2]

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return functional.pixel_unshuffle(x, 2)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return functional.pixel_shuffle(z, 2)


def test_a_net_is_told_what_it_must_know() -> None:
    conditioner = LabelConditioner(classes=3, dim=6)
    net = partial(MLPBackbone, width=8, depth=1)
    built = from_parts(
        net, Article(4), channels=3, image_size=8, conditioner=conditioner, codec=Halves(), z_dim=5
    )
    assert built.shape == (12, 4, 4)
    assert built.image_shape == (3, 8, 8)
    assert (built.net.token_dim, built.net.pooled_dim, built.net.z_dim) == (0, 6, 5)
    assert built.process.schedule.steps == 4


def test_what_follows_from_other_parts_is_not_given() -> None:
    net = partial(MLPBackbone, width=8, depth=1, channels=3)
    with pytest.raises(UserError, match=r"net\.channels follows from the data, the codec"):
        from_parts(net, Article(4), channels=1, image_size=8)


@pytest.mark.parametrize(
    ("conditioner", "said"),
    [
        (None, "net=dit_label reads class labels only"),
        (TextConditioner(16, vocab=514, layers=1, heads=2), "net=dit_label reads class labels only"),
        (LabelConditioner(4, 16), r"net\.classes=3 and conditioner\.classes=4: make them equal"),
    ],
)
def test_a_net_of_labels_needs_them(
    conditioner: TextConditioner | LabelConditioner | None, said: str
) -> None:
    net = partial(LabelTransformer, layers=1, heads=2, head_dim=8, classes=3)
    with pytest.raises(UserError, match=said):
        from_parts(net, Article(4), channels=1, image_size=8, conditioner=conditioner)


def test_the_tree_alone_rebuilds_it() -> None:
    tree = {
        "_target_": "lmsd.models.parts.from_parts",
        "schedule": {"_target_": "lmsd.process.schedules.Article", "steps": 4},
        "net": {"_target_": "lmsd.models.backbones.MLPBackbone", "_partial_": True, "width": 8, "depth": 1},
        "channels": 1,
        "image_size": 8,
        "prediction": "x0",
        "precondition": "edm",
        "sigma_data": 0.7,
    }
    torch.manual_seed(0)
    first = build(tree)
    torch.manual_seed(0)
    second = build(tree)
    assert (first.prediction, first.sigma_data) == ("x0", 0.7)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
