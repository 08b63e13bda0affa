"""Inception-v3 against torch-fidelity with the same random weights, from both kinds of file."""

from pathlib import Path

import pytest
import torch
from golden_inception import pixels, random_state

from lmsd.errors import UserError
from lmsd.features.inception import InceptionExtractor, InceptionV3, tf1_bilinear

GOLDEN = {
    32: (
        [3.0085807, 0.0479605, 0.0106608, 0.153351, 2274.000217],
        [-0.1048079, 1.2467576, -0.0417785, -0.3561976, 70.9964287],
    ),
    320: (
        [3.7591534, 0.0552556, 0.0080247, 0.1885419, 2765.9746797],
        [-0.2522554, 1.4976218, -0.2294939, -0.3984532, 81.206347],
    ),
}
"""By torch-fidelity 0.4.0: the first four of the first image, and the sum of both images'. Remade by
`PYTHONPATH=src python tests/models/golden_inception.py` where torch-fidelity is installed."""


class Scripted(torch.nn.Module):
    """The interface of the TorchScript file around a traced net."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(
        self, img: torch.Tensor, return_features: bool = False, no_output_bias: bool = False
    ) -> torch.Tensor:
        features, logits = self.net(img)
        assert return_features != no_output_bias
        return features if return_features else logits.softmax(1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(random_state(), path)
    return path


@pytest.fixture(scope="module")
def extractor(weights) -> InceptionExtractor:
    return InceptionExtractor(weights)


@pytest.mark.parametrize("size", GOLDEN)
def test_equals_torch_fidelity(extractor, size):
    """Smaller and larger than 299, from uint8 and from floats."""
    for images in (pixels(size), pixels(size).float() / 127.5 - 1):
        for found, golden in zip(extractor(images), GOLDEN[size], strict=True):
            shown = [*found[0, :4].tolist(), found.double().sum().item()]
            assert shown == pytest.approx(golden, rel=1e-4, abs=1e-5)


def test_the_torchscript_file_gives_the_same(extractor, tmp_path):
    """Features equal; logits up to a constant of each image, which no softmax sees."""
    net = InceptionV3().eval()
    net.load_state_dict(random_state())
    path = tmp_path / "inception-2015-12-05.pt"
    with torch.no_grad():
        torch.jit.script(Scripted(torch.jit.trace(net, pixels(32), check_trace=False))).save(str(path))
    scripted = InceptionExtractor(path)
    assert scripted.scripted
    assert not extractor.scripted
    ours, theirs = extractor(pixels(32)), scripted(pixels(32))
    torch.testing.assert_close(theirs[0], ours[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(theirs[1].softmax(1), ours[1].softmax(1), rtol=1e-3, atol=1e-6)


def test_resizing_is_tensorflow_ones():
    """Pixel i of 4 from 2 is read at i/2: 0, half way, 1, and the last again; nothing moves at equal size."""
    x = torch.tensor([[[[0.0, 8.0], [0.0, 8.0]]]])
    assert torch.equal(tf1_bilinear(x, 4)[0, 0, 0], torch.tensor([0.0, 4.0, 8.0, 8.0]))
    assert torch.equal(tf1_bilinear(x, 2), x)


def test_the_name_carries_the_weights_and_only_the_known_ones_are_the_reference(extractor):
    assert extractor.name == f"inception-v3@{extractor.sha256[:4]}"
    assert not extractor.reference


def test_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no Inception weights at .*name the file inception-2015-12-05"):
        InceptionExtractor(tmp_path / "nowhere.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="holds no state dict of the Inception-v3"):
        InceptionExtractor(tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(UserError, match="holds no state dict"):
        InceptionExtractor(tmp_path / "text.pth")


def test_floats_beyond_the_declared_range_are_refused(extractor):
    with pytest.raises(UserError, match=r"floats in \[-1,1\], not float32 up to 255"):
        extractor(torch.full((1, 3, 8, 8), 255.0))
