"""Editing on a denoiser that is known exactly: what is known stays, and strength says how far one goes."""

import pytest
import torch
from torch import Tensor

from lmsd.errors import UserError
from lmsd.process import Process
from lmsd.process.schedules import EDM, Article, Flow
from lmsd.rng import Rng
from lmsd.sampling import Heun, Sampler, Settings, Tau, edit, first_knot
from lmsd.types import Cond


class Constant:
    bound = 1.0
    """Always predicts the same image."""

    z_dim = 0

    def __init__(self, process: Process, value: float) -> None:
        self.process, self.value = process, value

    def __call__(
        self, x_t: Tensor, t: Tensor, cond: Cond, z: Tensor | None = None, *, output: str = "x0"
    ) -> Tensor:
        return torch.full_like(x_t, self.value)


class Posterior(Constant):
    """E[x_0 | x_t] for x_0 ~ N(0, I)."""

    def __call__(
        self, x_t: Tensor, t: Tensor, cond: Cond, z: Tensor | None = None, *, output: str = "x0"
    ) -> Tensor:
        alpha, sigma = self.process.alpha_sigma(t, x_t)
        return alpha / (alpha**2 + sigma**2) * x_t


IMAGE = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
MASK = torch.zeros(6, 1, 4, 4)
MASK[:, :, 1:3, 1:3] = 1


@pytest.mark.parametrize("sampler", [Tau(1), Tau(0.0), Heun()])
@pytest.mark.parametrize("schedule", [Article(4), Flow()])
def test_the_known_part_ends_as_it_was_and_the_rest_as_predicted(sampler: Sampler, schedule: object) -> None:
    generator = Constant(Process(schedule), 0.5)  # type: ignore[arg-type]
    numbers = Rng(0, torch.arange(6))
    made = edit(generator, IMAGE, Cond(), sampler=sampler, settings=Settings(4), rng=numbers, mask=MASK)
    torch.testing.assert_close(made[MASK == 0], IMAGE[MASK == 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(made[MASK == 1], torch.full((24,), 0.5), atol=1e-5, rtol=0)


def test_less_strength_stays_closer() -> None:
    generator, numbers = Posterior(Process(Flow()), 0.0), Rng(0, torch.arange(6))
    far = []
    for strength in (0.02, 0.3, 0.6, 1.0):
        made = edit(
            generator, IMAGE, Cond(), sampler=Tau(0.0), settings=Settings(50), rng=numbers, strength=strength
        )
        far.append(float((made - IMAGE).square().mean()))
    assert far == sorted(far)
    assert far[0] < 0.01
    assert far[-1] > 0.1


def test_strength_1_forgets_the_image_where_the_noisiest_knot_still_holds_it() -> None:
    """Of a process that explodes, x_T = x_0 + sigma_T eps: the beginning is the noise alone."""
    generator, numbers = Posterior(Process(EDM(sigma_max=5.0)), 0.0), Rng(0, torch.arange(6))
    made, other = (
        edit(generator, image, Cond(), sampler=Tau(0.0), settings=Settings(4), rng=numbers)
        for image in (IMAGE, -IMAGE)
    )
    assert torch.equal(made, other)


class Guided(Constant):
    """The value without a condition, and one more with it."""

    def __call__(
        self, x_t: Tensor, t: Tensor, cond: Cond, z: Tensor | None = None, *, output: str = "x0"
    ) -> Tensor:
        return torch.full_like(x_t, self.value + (0.0 if cond.pooled is None else 1.0))


def test_an_edit_is_guided_where_the_interval_says_and_nowhere_else() -> None:
    """The last step's prediction is the image: guided there it is 0 + 3 (1 - 0), else 1."""
    generator, cond = Guided(Process(Flow()), 0.0), Cond(pooled=torch.ones(6, 2))
    last = float(Flow().grid(4)[3])

    def made(interval: tuple[float, float] | None, guidance: float = 3.0) -> float:
        numbers = Rng(0, torch.arange(6))
        settings = Settings(4, guidance=guidance, interval=interval, bound=None)
        image = edit(
            generator, IMAGE, cond, Cond(), sampler=Tau(), settings=settings, rng=numbers, strength=0.5
        )
        return float(image.mean())

    assert made(None) == pytest.approx(3.0)
    assert made((0.0, last + 0.01)) == pytest.approx(3.0)
    assert made((last + 0.01, 1.0)) == pytest.approx(1.0)
    assert made(None, guidance=1.0) == pytest.approx(1.0)


def test_strength_counts_the_last_steps() -> None:
    assert [first_knot(s, 4) for s in (0.375, 0.5, 0.6, 0.62, 0.625, 0.63)] == [2, 2, 2, 2, 1, 1]
    assert [4 - first_knot(s / 8, 4) for s in range(1, 9)] == [1, 1, 2, 2, 3, 3, 4, 4], "halves up, always"
    assert [first_knot(s, 4) for s in (1.0, 0.75, 0.5, 0.25, 0.01)] == [0, 1, 2, 3, 3]
    for strength in (0.0, -1.0, 1.01, "half", True):
        with pytest.raises(UserError, match="strength="):
            first_knot(strength, 4)
