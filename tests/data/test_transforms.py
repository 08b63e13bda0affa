"""Fitting, scaling and augmentation: exact values, and keyed by position alone."""

import numpy as np
import torch
from tars import picture

from lmsd.data.transforms import fit, flip, jitter, scale
from lmsd.rng import Rng


def test_scale_is_exact_at_both_ends_and_linear():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    x = scale(levels)
    assert x.shape == (1, 1, 16, 16)
    assert x.is_contiguous()
    assert x.min() == -1
    assert x.max() == 1
    assert torch.allclose(x.double().flatten(), torch.linspace(-1, 1, 256, dtype=torch.float64), atol=2e-7)


def test_scale_moves_channels_first():
    for size, count in ((5, 3), (24, 70), (200, 2)):  # one piece, many pieces, pieces of one
        pixels = np.stack([picture(k, size) for k in range(count)])
        expected = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
        assert torch.allclose(scale(pixels), expected, atol=1e-6)


def test_fit_leaves_the_right_size_alone_and_crops_the_center():
    image = picture(1, 16)
    assert fit(image, 16) is image
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = 200
    assert np.all(fit(wide, 4) == 200)
    tall = wide.transpose(1, 0, 2)
    assert np.all(fit(np.ascontiguousarray(tall), 4) == 200)


def test_fit_is_antialiased():
    stripes = np.zeros((64, 64, 1), np.uint8)
    stripes[:, ::2] = 255
    small = fit(stripes, 8)
    assert np.abs(small.astype(int) - 127).max() <= 8  # aliasing would give 0 or 255


def test_fit_enlarges_smoothly_for_grey_and_rgb():
    for channels in (1, 3):
        image = picture(2, 8, channels)
        large = fit(image, 32)
        assert large.shape == (32, 32, channels)
        assert np.abs(fit(large, 8).astype(int) - image).max() <= 12


def test_flip_mirrors_half_and_depends_on_the_position_only():
    position = torch.arange(4000)
    x = torch.linspace(-1, 1, 6).view(1, 1, 2, 3).expand(4000, 1, 2, 3)
    out = flip(x, Rng(3, position))
    mirrored = (out == x.flip(-1)).all(-1).all(-1).all(-1)
    kept = (out == x).all(-1).all(-1).all(-1)
    assert torch.all(mirrored ^ kept)
    assert abs(mirrored.float().mean() - 0.5) < 0.03
    part = flip(x[100:110], Rng(3, position[100:110]))
    assert torch.equal(part, out[100:110])
    assert not torch.equal(flip(x, Rng(4, position)), out)


def test_what_is_mirrored_and_colored_stays_from_version_to_version():
    """A run that is resumed by a later version goes on with the same images: numbers of lmsd 0.1."""
    position, x = torch.arange(24), torch.tensor([0.0, 1.0]).view(1, 1, 1, 2).expand(24, 1, 1, 2)
    mirrored = flip(x, Rng(3, position))[:, 0, 0, 0]
    assert "".join(str(int(value)) for value in mirrored) == "101100010000000110100010"
    y = torch.linspace(-0.5, 0.5, 12).view(1, 3, 2, 2).expand(2, 3, 2, 2)
    colored = jitter(y, Rng(3, position[:2]), 0.5)[:, :, 0, 0]
    golden = [[-0.2151610, 0.0945861, 0.4043332], [-0.3249886, 0.0155294, 0.3560474]]
    torch.testing.assert_close(colored, torch.tensor(golden), rtol=0, atol=1e-6)


def test_color_changes_are_keyed_bounded_and_leave_black_and_grey_alone():
    position = torch.arange(500)
    x = scale(np.stack([picture(int(k), 6) for k in position]))
    out = jitter(x, Rng(0, position), 0.3)
    assert torch.equal(jitter(x[7:9], Rng(0, position[7:9]), 0.3), out[7:9])
    assert out.min() >= -1
    assert out.max() <= 1
    assert (out - x).abs().mean() > 0.05
    assert torch.allclose(jitter(x, Rng(0, position), 0.0), x, atol=1e-5)
    black = torch.full((4, 3, 2, 2), -1.0)
    assert torch.allclose(jitter(black, Rng(0, position[:4]), 0.5), black)
    grey = torch.full((4, 3, 2, 2), 0.1)
    spread = jitter(grey, Rng(0, position[:4]), 0.3)
    assert torch.allclose(spread, spread[:, :1, :1, :1].expand_as(spread), atol=1e-6)
