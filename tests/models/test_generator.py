import math

import pytest
import torch
from torch import nn

from lmsd.errors import UserError
from lmsd.models.backbones import MLPBackbone
from lmsd.models.conditioner import LabelConditioner
from lmsd.models.generator import Generator
from lmsd.process.gaussian import Process
from lmsd.process.schedules import EDM, Article, Cosine, Flow
from lmsd.types import Batch, Cond, Sizes

EVERY = {
    "article": (Article(), [1.0, 2.0, 3.0, 4.0]),
    "cosine": (Cosine(), [1.0, 300.0, 700.0, 1000.0]),
    "edm": (EDM(), [0.002, 0.5, 3.0, 80.0]),
    "flow": (Flow(), [0.0, 0.3, 0.7, 1.0]),
}


class Oracle(nn.Module):
    """Predicts what it was told to; remembers what it saw."""

    channels, image_size, token_dim, pooled_dim, z_dim = 2, 4, 0, 0, 0

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x, time, cond, z=None):
        self.seen = x, time
        return self.answer


@pytest.fixture
def data():
    torch.manual_seed(0)
    return 0.5 * torch.randn(4, 2, 4, 4), torch.randn(4, 2, 4, 4)


def randomized(generator: Generator) -> Generator:
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.normal_(std=0.2)
    return generator


@pytest.mark.parametrize(
    ("name", "prediction"),
    [(n, p) for n in ("article", "cosine", "flow") for p in ("x0", "v", "velocity")] + [("cosine", "eps")],
)
def test_a_perfect_net_gives_the_data_back(name, prediction, data):
    schedule, times = EVERY[name]
    process, t, (x_0, eps) = Process(schedule), torch.tensor(times), data
    x_t = process.noise(x_0, t, eps)
    native = process.target(prediction, x_0, eps, t)
    generator = Generator(Oracle(native), process, prediction=prediction)
    assert torch.equal(generator(x_t, t, Cond(), output="native"), native)
    assert torch.equal(generator.target(x_0, eps, t), native)
    rows = slice(0, 2) if prediction == "eps" else slice(0, 4)  # x̂₀ from ε at α ≈ 0 has few digits left
    torch.testing.assert_close(generator(x_t, t, Cond())[rows], x_0[rows], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", EVERY)
def test_edm_target_gives_the_data_back_for_every_process(name, data):
    schedule, times = EVERY[name]
    process, t, (x_0, eps) = Process(schedule), torch.tensor(times), data
    x_t = process.noise(x_0, t, eps)
    generator = Generator(Oracle(x_0), process, precondition="edm", sigma_data=0.7)
    generator.net.answer = generator.target(x_0, eps, t)
    torch.testing.assert_close(generator(x_t, t, Cond()), x_0, atol=2e-5, rtol=1e-4)


def test_edm_is_table_one_of_karras():
    torch.manual_seed(0)
    process, sigma, data = Process(EDM()), torch.tensor([0.002, 0.3, 7.0, 80.0]), 0.5
    raw, x_t = torch.randn(4, 2, 4, 4), torch.randn(4, 2, 4, 4)
    generator = Generator(Oracle(raw), process, precondition="edm", sigma_data=data)
    out = generator(x_t, sigma, Cond())
    seen, time = generator.net.seen
    for i, s in enumerate(sigma.tolist()):
        skip, scale = data**2 / (s**2 + data**2), s * data / math.sqrt(s**2 + data**2)
        torch.testing.assert_close(out[i], skip * x_t[i] + scale * raw[i])
        torch.testing.assert_close(seen[i], x_t[i] / math.sqrt(s**2 + data**2))
    torch.testing.assert_close(time, process.schedule.model_time(sigma))


def test_edm_input_and_target_have_unit_variance():
    torch.manual_seed(0)
    process = Process(EDM())
    generator = Generator(Oracle(torch.zeros(())), process, precondition="edm", sigma_data=0.5)
    for sigma in (0.01, 0.5, 20.0):
        x_0, eps = 0.5 * torch.randn(200, 2, 8, 8), torch.randn(200, 2, 8, 8)
        t = torch.full((200,), sigma)
        assert generator.scale_input(process.noise(x_0, t, eps), t).std().item() == pytest.approx(1, abs=0.02)
        assert generator.target(x_0, eps, t).std().item() == pytest.approx(1, abs=0.02)


def test_edm_returns_clean_data_unchanged(data):
    x, _ = data
    generator = Generator(Oracle(torch.full_like(x, 1e3)), Process(EDM()), precondition="edm")
    assert torch.equal(generator(x, torch.zeros(4), Cond()), x)


def test_text_and_latent_change_the_image(data):
    conditioner = LabelConditioner(3, 6)
    net = MLPBackbone(Sizes(2, 4, pooled_dim=6, z_dim=5), width=16, depth=2, time_dim=16)
    generator = randomized(Generator(net, Process(Article()), conditioner=conditioner, z_dim=5))
    t, position = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.arange(4)
    one, two = (generator.condition(Batch(data[0], position, label=torch.full((4,), k))) for k in range(2))
    z = torch.randn(2, 4, 5)

    def gap(a, b):
        return (a - b).abs().flatten(1).max(1).values.min()

    base = generator(data[1], t, one, z[0])
    assert gap(base, generator(data[1], t, two, z[0])) > 1e-3
    assert gap(base, generator(data[1], t, one, z[1])) > 1e-3
    assert torch.equal(base, generator(data[1], t, one, z[0]))


def test_output_is_float32_under_autocast(data):
    """The net may run in bfloat16; the way to x̂₀ adds no error of its own to what the net said."""
    generator = randomized(
        Generator(MLPBackbone(Sizes(2, 4), width=16, depth=1, time_dim=16), Process(Article()))
    )
    t = torch.tensor([1.0, 2.0, 3.0, 4.0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        native = generator(data[1], t, Cond(), output="native")
        x_0 = generator(data[1], t, Cond())
    assert x_0.dtype == native.dtype == torch.float32
    assert not torch.equal(native, generator(data[1], t, Cond(), output="native"))  # autocast did its work
    assert torch.equal(x_0, generator.process.to_x0(native, "v", data[1], t))


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("precondition=edm", lambda: Generator(MLPBackbone(Sizes(1, 4)), Process(EDM()))),
        ("eps", lambda: Generator(MLPBackbone(Sizes(1, 4)), Process(Article()), prediction="eps")),
        ("sigma_data=0", lambda: Generator(MLPBackbone(Sizes(1, 4)), Process(Article()), sigma_data=0.0)),
        ("z_dim=0", lambda: Generator(MLPBackbone(Sizes(1, 4)), Process(Article()), z_dim=2)),
        ("z_dim=3", lambda: Generator(MLPBackbone(Sizes(1, 4, z_dim=3)), Process(Article()))),
        (
            "pooled_dim=7",
            lambda: Generator(
                MLPBackbone(Sizes(1, 4, pooled_dim=7)), Process(Article()), conditioner=LabelConditioner(2, 6)
            ),
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(message, make):
    with pytest.raises(UserError, match=message):
        make()


def test_missing_latent_is_refused(data):
    generator = Generator(MLPBackbone(Sizes(2, 4, z_dim=3)), Process(Article()), z_dim=3)
    with pytest.raises(UserError, match=r"\[B,3\]"):
        generator(data[0], torch.ones(4), Cond())


def test_unconditional_generator_has_an_empty_condition(data):
    generator = Generator(MLPBackbone(Sizes(2, 4)), Process(Article()))
    assert generator.condition(Batch(data[0], torch.arange(4), text=["a"] * 4)) == Cond()
