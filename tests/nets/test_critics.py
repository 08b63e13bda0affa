import pytest
import torch

from lmsd.errors import UserError
from lmsd.nets.critics import ConvCritic, MLPCritic

MAKERS = {
    "mlp": lambda: MLPCritic((4, 8, 8), 24, depth=2, time_dim=16, cond_dim=5),
    "conv": lambda: ConvCritic((4, 8, 8), (8, 12), features=24, time_dim=16, cond_dim=5),
    "overlapping": lambda: ConvCritic((4, 8, 8), (8, 12), overlap=True, features=24, time_dim=16, cond_dim=5),
    "patched": lambda: ConvCritic((4, 8, 8), (8, 12), patch=2, features=24, time_dim=16, cond_dim=5),
}


@pytest.fixture(params=MAKERS)
def critic(request):
    torch.manual_seed(0)
    critic = MAKERS[request.param]()
    with torch.no_grad():  # the modulation starts at zero
        for name, parameter in critic.named_parameters():
            if "film" in name:
                parameter.normal_(std=0.2)
    return critic


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    return torch.randn(5, 4, 8, 8), torch.rand(5) * 1000, torch.randn(5, 5)


@pytest.mark.parametrize("which", range(3))
def test_every_input_counts(critic, inputs, which):
    moved = [value.clone() for value in inputs]
    moved[which] += 1.0
    assert critic(*inputs).shape == (5, critic.features)
    assert (critic(*inputs) - critic(*moved)).abs().max(1).values.min() > 1e-4


def test_samples_do_not_mix(critic, inputs):
    together = critic(*inputs)
    alone = torch.cat([critic(*(value[i : i + 1] for value in inputs)) for i in range(5)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_training_mode_is_no_different(critic, inputs):
    assert torch.equal(critic.train()(*inputs), critic.eval()(*inputs))


def test_features_start_at_the_scale_of_the_input(critic, inputs):
    x, time, vec = inputs
    assert 0.1 < critic(x, time, vec).std() < 10


def test_gradient_of_the_gradient_is_right(critic, inputs):
    """d/dθ ‖∇_x f‖² along a direction in θ against a central difference, in float64."""
    critic = critic.double()
    x, time, vec = (value.double() for value in inputs)
    x.requires_grad_()
    parameter = next(p for name, p in critic.named_parameters() if name.endswith("second.weight"))

    def penalty():
        (gradient,) = torch.autograd.grad(critic(x, time, vec).sum(), x, create_graph=True)
        return gradient.square().sum()

    (derivative,) = torch.autograd.grad(penalty(), parameter)
    direction, step = torch.randn_like(parameter), 1e-6
    with torch.no_grad():
        parameter += step * direction
    up = penalty().item()
    with torch.no_grad():
        parameter -= 2 * step * direction
    slope = (up - penalty().item()) / (2 * step)
    assert (derivative * direction).sum().item() == pytest.approx(slope, rel=1e-4)


def test_sides_that_do_not_divide_are_refused():
    with pytest.raises(UserError, match="10x10"):
        ConvCritic((1, 10, 10), (8, 8), patch=2)


@pytest.mark.parametrize("overlap", [False, True])
def test_what_a_halving_tells_of_neighboring_pixels(overlap):
    """Without overlap two pixels of a pair hear the same and the next pair something else: a grid."""
    critic = ConvCritic((1, 16, 16), (4, 4), overlap=overlap)
    x = torch.randn(1, 1, 16, 16, requires_grad=True)
    half = critic._half(x)
    torch.testing.assert_close(critic._half(torch.ones_like(x)), torch.ones_like(half))
    slope = torch.arange(8.0).expand(1, 1, 8, 8)  # what it says rises evenly from left to right
    (told,) = torch.autograd.grad(half, x, slope)
    steps = told[0, 0, 6, 4:12].diff()
    evenly = torch.full_like(steps, 0.125)
    uneven = (steps - evenly).abs().max() / 0.125
    assert (uneven < 1e-5) if overlap else (uneven > 0.99)
