"""What disturbs a generator, against closed forms; and the curves of a whole run."""

import json

import pytest
import torch

from lmsd.evaluation import disturbed
from lmsd.evaluation.robustness import Subject, Sweep, of_start, robust_charts, robustness, write
from lmsd.models.backbones import MLPBackbone
from lmsd.models.conditioner import LabelConditioner
from lmsd.models.generator import Generator
from lmsd.process.gaussian import Process
from lmsd.process.schedules import Flow
from lmsd.rng import Rng
from lmsd.sampling import Generation, Settings, Tau
from lmsd.types import Batch, Cond, Sizes

SHAPE = (1, 4, 4)


def test_noise_and_attacks_have_one_norm_and_the_attack_finds_the_worst_direction():
    """x̂_0 = A x: of all δ of norm ρ the first right singular vector moves x̂_0 the farthest, by ρ σ₁."""
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(16, 16, dtype=torch.float64))
    matrix = u * torch.tensor([3.0] + [1.0] * 15, dtype=torch.float64) @ v
    x_t = torch.zeros(6, *SHAPE, dtype=torch.float64)
    rng, norm = Rng(0, torch.arange(6)), torch.full((6, 1, 1, 1), 0.5, dtype=torch.float64)

    def denoise(x, t):
        return (x.flatten(1) @ matrix.T).view_as(x)

    noisy = disturbed.noise(x_t, rng, norm)
    worst = disturbed.attack(denoise, x_t, torch.ones(6), torch.zeros_like(x_t), rng, norm)
    for x in (noisy, worst):
        torch.testing.assert_close(disturbed.length_of(x), norm)
    far = disturbed.length_of(denoise(worst, None)).flatten()
    assert (far > 0.97 * 0.5 * 3).all()
    assert (far < 0.5 * 3 + 1e-9).all()
    assert (disturbed.length_of(denoise(noisy, None)).flatten() < far).all()


def test_another_start_is_noise_of_the_same_law():
    rng = Rng(1, torch.arange(20_000))
    x = 2.0 * rng.normal(SHAPE, "x_T")
    for strength in (0.0, 0.4, 1.0):
        moved = disturbed.start(x, rng, 2.0, strength)
        assert moved.std().item() == pytest.approx(2.0, rel=0.01)
        shared = (moved * x).mean() / x.square().mean()
        assert shared.item() == pytest.approx((1 - strength**2) ** 0.5, abs=0.01)
    assert torch.equal(disturbed.start(x, rng, 2.0, 0.0), x)


def test_noise_on_the_code_is_as_long_as_it_says():
    rng = Rng(2, torch.arange(500))
    cond = Cond(tokens=torch.randn(500, 3, 64), mask=torch.ones(500, 3, dtype=torch.bool), pooled=None)
    moved = disturbed.code(cond, rng, 0.5)
    ratio = (moved.tokens - cond.tokens).norm(dim=-1) / cond.tokens.norm(dim=-1)
    assert ratio.mean().item() == pytest.approx(0.5, rel=0.02)
    assert moved.mask is cond.mask
    assert torch.equal(disturbed.code(cond, rng, 0.0).tokens, cond.tokens)


@pytest.mark.parametrize("kind", [0.0, 0.3, 0.6, 0.9], ids=["replaced", "doubled", "dropped", "swapped"])
def test_a_typing_error_is_one_edit_of_a_letter(kind):
    said = disturbed.typing("a red circle", [0.3, kind, 0.9], 1)
    assert said != "a red circle"
    assert sorted(map(len, [said, "a red circle"])) in ([12, 12], [12, 13], [11, 12])
    assert disturbed.typing("a red circle", [0.3, kind, 0.9], 0) == "a red circle"
    assert disturbed.typing("123 !", [0.3, kind, 0.9], 1) == "123 !"


def test_words_change_places_with_their_neighbors():
    assert disturbed.order("a large red circle", [0.4], 1) == "a red large circle"
    assert disturbed.order("circle", [0.4], 1) == "circle"


def subject(count=60):
    torch.manual_seed(0)
    net = MLPBackbone(Sizes(1, 4, pooled_dim=8), width=16, depth=1, time_dim=8)
    generator = Generator(net, Process(Flow()), prediction="x0", conditioner=LabelConditioner(3, 8))
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    generate = Generation(generator, Tau(0.0), Settings(4))
    position = torch.arange(count)
    x_0 = Rng(3, position).normal(SHAPE, "x").clamp(-1, 1)
    batch = Batch(torch.full_like(x_0, -1.0), position, label=position % 3)
    return Subject(generate, x_0, batch, lambda x, b: x.mean((1, 2, 3)) > 0, lambda x: x.flatten(1)[:, :6])


def test_all_curves_of_a_generator():
    one = subject()
    curves = {(curve.kind, curve.what): curve for curve in robustness(one)}
    noise, attack = (curves[kind, "error of x̂₀ at knot 2"] for kind in ("noise", "attack"))
    assert noise.y[0] == pytest.approx(attack.y[0])  # undisturbed
    assert all(a > n for a, n in zip(attack.y[1:], noise.y[1:], strict=True))
    assert list(attack.y) == sorted(attack.y)
    start = curves["start", "distance in features, other noise: 1"]
    assert start.y[0] == 0.0
    assert start.y[-1] == pytest.approx(1.0)
    assert {kind for kind, what in curves if what == "right prompts"} == {
        "noise on x_t at knot 2", "attack on x_t at knot 2", "noise on the code"
    }  # fmt: skip
    for curve in curves.values():
        assert all(low <= y <= high for y, low, high in zip(curve.y, curve.low, curve.high, strict=True))
    again = {(curve.kind, curve.what): curve for curve in robustness(subject())}
    assert again == curves  # a function of the seed


def test_nothing_is_left_of_a_measurement():
    one = subject()
    before = [(p.requires_grad, p.grad) for p in one.net.parameters()]
    one.net.train()
    robustness(one)
    assert one.net.training
    assert [(p.requires_grad, p.grad) for p in one.net.parameters()] == before


def test_the_area_is_the_mean_over_the_strengths():
    curve = Sweep("a", "right prompts", (0.0, 1.0, 3.0), (1.0, 0.5, 0.5), (0.0,) * 3, (1.0,) * 3)
    assert curve.area == pytest.approx((0.75 + 2 * 0.5) / 3)


def test_curves_are_kept_and_drawn(tmp_path):
    (tmp_path / "eval" / "val").mkdir(parents=True)
    curves = of_start(subject(20))
    path = write(tmp_path / "eval" / "val", curves, {"n": 20})
    assert json.loads(path.read_text())["curves"][0]["area"] == pytest.approx(curves[0].area)
    ((title, svg),) = robust_charts(tmp_path)
    assert title == "Disturbed (val, n=20): distance in features, other noise: 1"
    assert svg.startswith("<svg")
    assert robust_charts(tmp_path / "eval") == []
