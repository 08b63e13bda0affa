import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from lmsd.data.builders.shapes import Scene, render
from lmsd.errors import UserError
from lmsd.rewards import JPEGSize, SceneWords, Sharpness, judge
from lmsd.types import Batch


def batch_of(images, text=None):
    return Batch(images, torch.arange(len(images)), text=text)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_size_is_the_encoders_and_grows_with_detail(channels):
    """Against PIL's encoder, the same libjpeg settings, within 2 %."""
    draw = torch.Generator().manual_seed(0)
    flat, noise = torch.zeros(1, channels, 64, 64), 2 * torch.rand(1, channels, 64, 64, generator=draw) - 1
    images = torch.cat([flat, noise])
    found = JPEGSize(1)(images, batch_of(images))
    levels = ((noise[0] + 1) * 127.5).round().byte()
    picture = Image.fromarray(levels[0].numpy() if channels == 1 else levels.permute(1, 2, 0).numpy())
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=95, subsampling=0)
    assert float(found[1]) == pytest.approx(file.tell() / 1000, rel=0.02)
    assert found[0] < 0.5 * found[1]
    assert torch.equal(JPEGSize(-1)(images, batch_of(images)), -found)
    two = torch.zeros(1, 2, 8, 8)
    with pytest.raises(UserError, match="not 2"):
        judge(JPEGSize(), two, batch_of(two))
    with pytest.raises(UserError, match="sign=0"):
        JPEGSize(0)


def test_sharpness_of_a_checkerboard_is_log_64_and_it_has_a_gradient():
    board = torch.tensor([[(-1.0) ** (i + j) for j in range(16)] for i in range(16)])[None, None]
    ramp = torch.linspace(-1, 1, 16).expand(1, 1, 16, 16).clone().requires_grad_()
    assert float(Sharpness()(board, batch_of(board))) == pytest.approx(math.log(64), abs=1e-4)
    value = Sharpness()(ramp, batch_of(ramp))
    assert float(value.detach()) == pytest.approx(math.log(1e-4), abs=1e-3)  # a plane has no Laplacian
    noisy = (ramp + 0.1 * board).detach().requires_grad_()
    (slope,) = torch.autograd.grad(Sharpness()(noisy, batch_of(noisy)).sum(), noisy)
    climbed = (noisy + 0.1 * slope).detach()
    assert Sharpness()(climbed, batch_of(climbed)) > Sharpness()(noisy, batch_of(noisy))


def test_scene_words_are_those_that_are_right():
    scene = Scene("circle", "red", "large", "left")
    picture = render(scene, 16).astype(np.float32) / 127.5 - 1
    images = torch.from_numpy(picture).permute(2, 0, 1)[None].repeat(4, 1, 1, 1)
    text = [
        "a large red circle on the left",
        "a large blue circle on the left",
        "a small blue circle on the left",
        "a small blue square on the right",
    ]
    assert SceneWords()(images, batch_of(images, text)).tolist() == [1.0, 0.75, 0.5, 0.0]
    assert SceneWords("all")(images, batch_of(images, text)).tolist() == [1.0, 0.0, 0.0, 0.0]
    with pytest.raises(UserError, match="credit='some'"):
        SceneWords("some")
