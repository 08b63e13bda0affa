"""A generator and a sampler as one function: settings, counts, and nothing left behind."""

import pytest
import torch

from lmsd.models.backbones import MLPBackbone
from lmsd.models.codec import Identity, Unshuffle
from lmsd.models.conditioner import LabelConditioner
from lmsd.models.conv_unet import ConvUNet
from lmsd.models.generator import Generator
from lmsd.process import Flow, Process
from lmsd.rng import Rng
from lmsd.sampling import Generation, Heun, Settings, Tau
from lmsd.types import Batch, Sizes


@pytest.fixture
def generator():
    torch.manual_seed(0)
    conditioner = LabelConditioner(4, 16)
    net = MLPBackbone(Sizes(1, 8, pooled_dim=conditioner.pooled_dim), width=32, depth=1)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return Generator(net, Process(Flow()), prediction="velocity", conditioner=conditioner).train()


def prompts(n: int) -> Batch:
    return Batch(x=torch.full((n, 1, 8, 8), -1.0), position=torch.arange(n), label=torch.arange(n) % 4)


@pytest.mark.parametrize(
    ("sampler", "guidance", "nfe"), [(Tau(0), 1.0, 3), (Tau(0), 2.0, 6), (Heun(), 1.0, 5)]
)
def test_evaluations_are_counted(generator, sampler, guidance, nfe):
    """Heun's last of three steps needs one evaluation, guidance two for each."""
    generate = Generation(generator, sampler, Settings(3, guidance=guidance))
    for _ in range(2):
        generate(prompts(5), Rng(0, torch.arange(5)))
    record = generate.record()
    assert record == {"sampler": type(sampler).__name__, "steps": 3, "guidance": guidance, "nfe": nfe}


def test_a_sample_does_not_depend_on_its_batch(generator):
    generate = Generation(generator, Tau(1), Settings(4, guidance=1.5))
    together = generate(prompts(6), Rng(3, torch.arange(6)))
    batch = Batch(x=prompts(1).x, position=torch.tensor([4]), label=torch.tensor([0]))
    torch.testing.assert_close(generate(batch, Rng(3, batch.position)), together[4:5], rtol=1e-4, atol=1e-5)
    assert not torch.equal(together, generate(prompts(6), Rng(4, torch.arange(6))))


def test_the_generator_is_left_as_it_was(generator):
    state = {name: value.clone() for name, value in generator.state_dict().items() if torch.is_tensor(value)}
    images = Generation(generator, Tau(0), Settings(2))(prompts(3), Rng(0, torch.arange(3)))
    assert generator.training
    assert not generator._forward_hooks
    assert all(torch.equal(generator.state_dict()[name], value) for name, value in state.items())
    assert not images.requires_grad
    assert images.abs().max() <= 1.0


def test_images_of_another_size(generator):
    net = ConvUNet(Sizes(3, 16, pooled_dim=16), widths=[16, 32], blocks=[1, 1], patch=2)
    any_size = Generator(
        net, Process(Flow()), prediction="velocity", conditioner=generator.conditioner, codec=Identity()
    )
    generate = Generation(any_size, Tau(0), Settings(2, guidance=2.0), size=(8, 24))
    assert generate(prompts(3), Rng(0, torch.arange(3))).shape == (3, 3, 8, 24)


def test_guidance_moves_the_samples(generator):
    rng = Rng(0, torch.arange(4))
    plain = Generation(generator, Tau(0), Settings(2))(prompts(4), rng)
    guided = Generation(generator, Tau(0), Settings(2, guidance=4.0))(prompts(4), rng)
    assert (plain - guided).abs().mean() > 1e-3


def test_a_place_may_change_where_any_of_its_pixels_may(generator):
    """What is diffused has squares of pixels in a place: one marked pixel frees all of it, as all four do."""
    net = MLPBackbone(Sizes(4, 4, pooled_dim=16), width=32, depth=1)
    latent = Generator(
        net, Process(Flow()), prediction="velocity", conditioner=generator.conditioner, codec=Unshuffle(2)
    )
    generate, numbers = Generation(latent, Tau(0.0), Settings(2)), Rng(0, torch.arange(3))
    one, whole = torch.zeros(2, 3, 1, 8, 8)
    one[:, :, 3, 4] = whole[:, :, 2:4, 4:6] = 1
    made, other = (generate.edit(prompts(3), numbers, strength=1.0, mask=mask) for mask in (one, whole))
    assert torch.equal(made, other)
    assert (made + 1).abs()[whole == 1].max() > 0.1
    assert torch.equal(made[whole == 0], prompts(3).x[whole == 0])
