"""The augmentation of what a discriminator sees: which way, how strongly, and that noise stays noise."""

import pytest
import torch
from tiny_players import CAPTIONS, TinyClock, play, split, tiny_batch, tiny_players

from lmsd.errors import UserError
from lmsd.models.codec import Unshuffle
from lmsd.objectives import Adversarial, Anchor, Augment, Penalty
from lmsd.objectives.augmentation import EVERY
from lmsd.objectives.base import Facts
from lmsd.process.gaussian import Process
from lmsd.process.schedules import Flow
from lmsd.process.times import Jumps
from lmsd.rng import Rng

COMMUTING = ("shift", "mirror", "turn", "cutout")


def seen(augment, *, x, s, t, process=None, seed=5, surely=True):
    rng = Rng(seed, torch.arange(len(x)))
    return augment.view(x, s, t, rng, process=process or Process(Flow()), surely=surely)


def times(count, value):
    return torch.full((count,), value)


@pytest.mark.parametrize("name", COMMUTING)
def test_what_acts_on_noisy_images_commutes_with_the_noise(name):
    """T x_s and T x_t of one image have the means, variances and covariance of the pair of T x₀."""
    count, process = 40_000, Process(Flow())
    image = torch.tensor([[1.0, 0.5, -0.5], [0.2, -0.2, 0.9], [-0.8, 0.1, 0.6]])[None, None]
    x_0 = image.expand(count, -1, -1, -1)
    s, t = times(count, 0.3), times(count, 0.7)
    x_s, x_t = process.pair(x_0, s, t, Rng(1, torch.arange(count)))
    augment = Augment("fixed", transforms=[name], background=-1.0)
    view = seen(augment, x=x_0, s=s, t=t, process=process)
    clean = seen(augment, x=x_0, s=times(count, 0.0), t=t, process=process).earlier(x_0)
    early, late = view.earlier(x_s) - 0.7 * clean, view.later(x_t) - 0.3 * clean
    assert (clean != x_0).flatten(1).any(1).float().mean() > 0.5  # it does something
    for noise, sigma in ((early, 0.3), (late, 0.7)):
        assert noise.mean(0).abs().max() < 0.02
        assert noise.std(0).sub(sigma).abs().max() < 0.01
    # x_t = (α_t/α_s) x_s + noise: their covariance is (α_t/α_s) σ_s² at every pixel, and nothing across
    covariance = torch.einsum("nchw,ncij->hwij", early, late) / count
    expected = torch.zeros(9, 9).fill_diagonal_(0.3 / 0.7 * 0.09).view(3, 3, 3, 3)
    assert (covariance - expected).abs().max() < 0.01


def test_a_shift_of_a_pixel_brings_background_in():
    x = torch.rand(64, 1, 4, 4)
    made = seen(Augment("fixed", transforms=["shift"]), x=x, s=times(64, 0.0), t=times(64, 1.0)).earlier(x)
    found = set()
    for image, moved in zip(x, made, strict=True):
        padded = torch.nn.functional.pad(image, (1, 1, 1, 1), value=-1.0)
        ways = {
            (dy, dx)
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
            if torch.equal(padded[:, 1 - dy : 5 - dy, 1 - dx : 5 - dx], moved)
        }
        assert len(ways) == 1
        found |= ways
    assert len(found) == 9


@pytest.mark.parametrize("name", ["mirror", "turn"])
def test_permutations_lose_nothing(name):
    x = torch.rand(32, 2, 4, 4)
    made = seen(Augment("fixed", transforms=[name]), x=x, s=times(32, 0.0), t=times(32, 1.0)).earlier(x)
    ways = [x.flip(-1)] if name == "mirror" else [torch.rot90(x, k, (2, 3)) for k in (1, 2, 3)]
    hits = torch.stack([(way == made).flatten(1).all(1) for way in ways])
    assert hits.any(0).all()
    assert hits.any(1).all()


def test_color_is_for_clean_images():
    augment = Augment("fixed", transforms=["color"])
    x = torch.rand(6, 3, 4, 4) - 0.5
    s = torch.tensor([0.0, 0.0, 0.0, 0.2, 0.2, 0.2])
    made = seen(augment, x=x, s=s, t=times(6, 1.0)).earlier(x)
    assert (made != x).flatten(1).any(1).tolist() == [True] * 3 + [False] * 3
    with pytest.raises(UserError, match="color does not commute"):
        augment.prepare(lambda: None, sees_x_t=True, pixels=True)
    augment.prepare(lambda: None, sees_x_t=False, pixels=True)


def test_nobody_augments_unless_told():
    augment = Augment()
    assert not augment.on
    assert seen(augment, x=torch.zeros(2, 1, 4, 4), s=times(2, 0.0), t=times(2, 1.0)) is None
    assert augment.state_dict() == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"strength": "sign"}, "no transform is named"),
        ({"strength": "fixed", "transforms": ["blur"]}, "blur"),
        ({"strength": "fixed", "transforms": ["shift"], "p": 1.5}, "p=1.5"),
    ],
    ids=["none named", "unknown", "p"],
)
def test_what_cannot_be_is_refused(given, said):
    with pytest.raises(UserError, match=said):
        Augment(**given)


def test_the_gap_needs_held_out_images_and_latents_are_refused():
    augment = Augment("gap", transforms=["shift"])
    with pytest.raises(UserError, match="compares with val"):
        augment.prepare(lambda: None, sees_x_t=True, pixels=True)
    with pytest.raises(UserError, match="diffuses latents"):
        augment.prepare(lambda: None, sees_x_t=True, pixels=False)
    cast = tiny_players()
    cast["generator"].codec = Unshuffle(2)  # bounded as pixels are, and yet their places are others
    game = Adversarial(Jumps(4), penalty=Penalty(augment=Augment("fixed", transforms=["mirror"], p=0.5)))
    with pytest.raises(UserError, match="diffuses latents"):
        game.prepare(Facts(CAPTIONS, lambda: None, cast))


class Shifted(torch.nn.Module):
    """A discriminator with a number added to all logits, and another one for each caption."""

    def __init__(self, inner, by, each=0.0):
        super().__init__()
        self.inner, self.by, self.each = inner, by, each

    def forward(self, x_s, x_t, s, t, cond):
        gauge = self.each * cond.pooled.detach().sum(1, keepdim=True)
        return self.inner(x_s, x_t, s, t, cond) + self.by + gauge


def course(strength, *, by=0.0, each=0.0, parts=1, updates=3 * EVERY):
    """The strength after every update, with a discriminator that is played but does not learn."""
    augment = Augment(strength, transforms=["shift", "mirror"], p=0.3, target=0.5, span=200)
    objective = Adversarial(Jumps(4), penalty=Penalty("none", augment=augment), anchor=Anchor("mse_kl"))
    players = tiny_players()
    augment.prepare(lambda: tiny_batch(24, start=500), sees_x_t=True, pixels=True)
    players["discriminator"] = Shifted(players["discriminator"], by, each)
    found = []
    for update in range(updates):
        batch = tiny_batch(8, start=8 * update)
        play(objective, players, split(batch, parts), TinyClock(updates=update), rate=0.0)
        found.append(float(augment.p))
    return found


@pytest.mark.parametrize("strength", ["sign", "gap"])
def test_logits_are_free_up_to_a_number_for_each_caption(strength):
    plain = course(strength)
    assert plain[: EVERY - 1] == pytest.approx([0.3] * (EVERY - 1))
    assert plain[EVERY - 1] != pytest.approx(0.3)  # it moves
    assert course(strength, by=1000.0) == plain
    assert course(strength, each=1000.0) == plain


@pytest.mark.parametrize("strength", ["sign", "gap"])
def test_micro_batches_change_no_strength(strength):
    assert course(strength, parts=4) == course(strength)


def test_the_sign_rises_where_the_discriminator_is_right():
    """E sign = 1 above a target of ½: up by images/span each time, to `most`; −1: down, to 0."""
    augment = Augment("sign", transforms=["shift"], p=0.5, target=0.5, span=160, most=0.75)
    for real, expected in ((1.0, [0.7, 0.75]), (-1.0, [0.55, 0.35, 0.15, 0.0])):
        for value in expected:
            for _ in range(EVERY):
                augment.note(torch.full((8, 1), real), torch.zeros(8, 1))
                augment.settle()
            assert float(augment.p) == pytest.approx(value)


def test_the_gap_is_the_formula():
    """Δ_train = 2, Δ_val = 0.5: r = ¾, above a target of 0.7 and below one of 0.8."""
    for target, expected in ((0.7, 0.55), (0.8, 0.45)):
        augment = Augment("gap", transforms=["shift"], p=0.5, target=target, span=640)
        augment.held = tiny_batch(8)
        for _ in range(EVERY):
            rng = Rng(0, torch.arange(8))
            augment.watch(lambda batch, rng: (torch.full((8, 1), 7.5), torch.full((8, 1), 7.0)), rng)
            augment.note(torch.full((8, 1), 102.0), torch.full((8, 1), 100.0))
            augment.settle()
        assert float(augment.p) == pytest.approx(expected)


@pytest.mark.parametrize("target", [-0.3, 0.3])
def test_the_gap_of_a_discriminator_that_knows_no_image_is_zero(target):
    """Held-out images are the training batch, and D is a mean square: r is 0, however strong T is."""

    class MeanSquare(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, x_s, x_t, s, t, cond):
            return self.gain * x_s.flatten(1).square().mean(1, keepdim=True)

    batch, players = tiny_batch(4000), tiny_players()
    players["discriminator"] = MeanSquare()
    augment = Augment("gap", transforms=["cutout", "shift"], p=0.8, target=target, most=1.0, span=10**6)
    augment.prepare(lambda: batch, sees_x_t=True, pixels=True)
    objective = Adversarial(Jumps(4), penalty=Penalty("none", augment=augment), anchor=Anchor("mse_kl"))
    for updates in range(EVERY):
        play(objective, players, [batch], TinyClock(updates=updates), rate=0.0)
    assert (float(augment.p) > 0.8) == (target < 0)


def test_real_fake_and_x_t_are_seen_through_one_transform():
    """D gets T x_s, T x̃_s and T x_t of one T: undone by the view's own index, they are what was drawn."""

    class Remembers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gain, self.seen = torch.nn.Parameter(torch.ones((), dtype=torch.float64)), []

        def forward(self, x_s, x_t, s, t, cond):
            self.seen.append((x_s.detach(), x_t.detach()))
            return self.gain * x_s.flatten(1).mean(1, keepdim=True)

    found = {}
    for p in (0.0, 1.0):
        players = tiny_players()
        players["discriminator"] = Remembers()
        augment = Augment("fixed", transforms=["mirror"], p=p)
        objective = Adversarial(Jumps(4), penalty=Penalty("none", augment=augment), anchor=Anchor("mse_kl"))
        play(objective, players, [tiny_batch(6)], TinyClock(), rate=0.0)
        found[p] = players["discriminator"].seen
    for plain, turned in zip(found[0.0], found[1.0], strict=True):
        for before, after in zip(plain, turned, strict=True):
            torch.testing.assert_close(after, before.flip(-1))


def test_consistency_is_the_square_of_the_change():
    """D = the first pixel, T' = mirror, T = 1: E[(x₁ − x₃)² + (x̃₁ − x̃₃)²] of the first row."""

    class First(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gain, self.seen = torch.nn.Parameter(torch.ones((), dtype=torch.float64)), []

        def forward(self, x_s, x_t, s, t, cond):
            self.seen.append(x_s.detach())
            return self.gain * x_s[:, :1, 0, 0]

    players = {**tiny_players(), "discriminator": First()}
    augment = Augment("fixed", transforms=["mirror"], p=0.0, consistency=3.0)
    objective = Adversarial(Jumps(4), penalty=Penalty("none", augment=augment), anchor=Anchor("mse_kl"))
    (_, gradients, logs), *_ = play(objective, players, [tiny_batch(8)], TinyClock(), rate=0.0)
    pair = players["discriminator"].seen[0]
    change = (pair[:, 0, 0, 0] - pair[:, 0, 0, 2]).square()
    assert logs["consistency"] == pytest.approx(2 * change.mean().item(), rel=1e-6)
    real, fake = pair[:, 0, 0, 0].chunk(2)
    adversary = (torch.sigmoid(fake - real) * (fake - real)).mean()
    assert gradients["gain"].item() == pytest.approx(float(adversary + 3.0 * 4 * change.mean()), rel=1e-6)


def test_captions_of_the_held_out_batch_are_its_own():
    augment = Augment("gap", transforms=["shift"])
    augment.held, asked = tiny_batch(4, start=2), []
    augment.updates = EVERY - 1

    def verdicts(batch, rng):
        asked.append(batch)
        return torch.zeros(len(batch), 1), torch.zeros(len(batch), 1)

    augment.watch(verdicts, Rng(0, torch.arange(50)))
    (batch,) = asked
    assert len(batch) == 50
    for position, text in zip(batch.position.tolist(), batch.text, strict=True):
        assert text == CAPTIONS[position % len(CAPTIONS)]
