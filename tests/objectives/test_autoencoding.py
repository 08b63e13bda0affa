"""An autoencoder trained as a codec: what each term is, what is refused, and that it learns."""

import pytest
import torch
from torch import nn

from lmsd.errors import UserError
from lmsd.features.cnn import LMSDCNN
from lmsd.models.own import OwnAutoencoder
from lmsd.nets.patch import PatchCritic
from lmsd.objectives.autoencoding import SIDE, Autoencoding, perceived, treated
from lmsd.objectives.base import Facts
from lmsd.rng import Rng
from lmsd.types import Batch, Clock

SHAPE = (3, 16, 16)


def images(count: int, seed: int = 0) -> torch.Tensor:
    """Smooth images: a ramp between two colors."""
    rng = torch.Generator().manual_seed(seed)
    one, other = (torch.rand(2, count, 3, 1, 1, generator=rng) * 2 - 1).unbind()
    ramp = torch.linspace(0, 1, 16).view(1, 1, 1, 16)
    return (one * (1 - ramp) + other * ramp).expand(count, 3, 16, 16).contiguous()


def players() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "codec": OwnAutoencoder(SHAPE, widths=(8, 8), latent_channels=2),
        "discriminator": PatchCritic(SHAPE, (8, 8)),
    }


def facts(cast: dict[str, nn.Module]) -> Facts:
    return Facts([], lambda: None, cast, lambda width, seed: pytest.fail("no classifier is asked for"))


class Exact(OwnAutoencoder):
    """An autoencoder that is exactly equivariant: latents are the pixels, averaged over squares of two."""

    def spread(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = nn.functional.avg_pool2d(x, 2)
        return z, torch.zeros_like(z)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(z, scale_factor=2, mode="nearest")


def test_an_equivariant_autoencoder_has_no_extra_loss() -> None:
    """Turned by quarters, latents and pixels agree to the last bit, and so do the losses."""
    codec = Exact(SHAPE, widths=(8, 8), latent_channels=3)
    method, x = Autoencoding(perceptual=0.0, adversary=0.0), images(4)
    plain = method._c_loss(codec, None, x, Rng(0, torch.arange(4)), None).value
    for turn in range(4):
        turned = method._c_loss(codec, None, x, Rng(0, torch.arange(4)), (8, turn)).value
        torch.testing.assert_close(turned, plain)


def test_scaled_latents_keep_four_cells_and_every_rank_draws_the_same() -> None:
    method, codec = Autoencoding(perceptual=0.0, equivariance=0.5), players()["codec"]
    drawn = [method._change(7, 32 * step, images(2), codec) for step in range(400)]
    assert drawn == [method._change(7, 32 * step, images(2, 1), codec) for step in range(400)]
    changes = [change for change in drawn if change is not None]
    assert 140 < len(changes) < 260
    assert {side for side, _ in changes} == set(range(SIDE, 9))
    assert {turn for _, turn in changes} == {0, 1, 2, 3}
    assert not any(
        Autoencoding(perceptual=0.0, equivariance=0.0)._change(7, 32 * step, images(2), codec)
        for step in range(50)
    )


def test_treated_turns_as_torch_does() -> None:
    x = images(2)
    assert torch.equal(treated(x, 16, 1), torch.rot90(x, 1, (2, 3)))
    assert treated(x, 8, 3).shape == (2, 3, 8, 8)


def test_kl_is_that_of_normal_distributions() -> None:
    cast, method = players(), Autoencoding(perceptual=0.0, adversary=0.0, kl=0.5, equivariance=0.0)
    x, rng = images(4), Rng(0, torch.arange(4))
    mean, logvar = cast["codec"].spread(x)
    own = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    expected = torch.distributions.kl_divergence(own, torch.distributions.Normal(0.0, 1.0)).mean()
    loss = method._c_loss(cast["codec"], None, x, rng, None)
    torch.testing.assert_close(loss.logs["kl"], expected)
    torch.testing.assert_close(loss.value, loss.logs["reconstruction"] + 0.5 * loss.logs["kl"])
    other = method._c_loss(cast["codec"], None, x.flip(0), Rng(0, torch.arange(4).flip(0)), None)
    torch.testing.assert_close(other.value, loss.value)  # what is drawn belongs to the position


def test_perception_is_none_of_equal_images_and_more_of_other_ones() -> None:
    torch.manual_seed(0)
    judge = LMSDCNN(3, 16, 4, 8).eval()
    x = images(3)
    assert float(perceived(judge, x.shape[2:], x, x).abs().max()) == 0
    near, far = (perceived(judge, x.shape[2:], x, x + step * torch.randn_like(x)) for step in (0.05, 0.5))
    assert bool((far > near).all())


def test_it_learns_to_give_images_back_with_and_without_the_adversary() -> None:
    """Both players by hand, as the engine plays them: reconstruction falls."""
    cast, method = players(), Autoencoding(perceptual=0.0, start=0.5, equivariance=0.0)
    makers = {role: torch.optim.Adam(net.parameters(), 5e-3, betas=(0.9, 0.95)) for role, net in cast.items()}
    clock, seen = Clock(total_images=1_152, lead="codec"), []
    for step in range(72):
        batch = Batch(images(16), torch.arange(16 * step, 16 * step + 16))
        roles = []
        for turn in method.turns(cast, batch, clock, Rng(0, batch.position)):
            roles.append(turn.player)
            found = turn.loss()
            makers[turn.player].zero_grad()
            found.value.backward()
            makers[turn.player].step()
            clock.count(turn.player)
            seen += [float(found.logs["reconstruction"])] if turn.player == "codec" else []
        assert roles == (["codec"] if step < 36 else ["discriminator", "codec"])
        clock.images += 16
    assert sum(seen[-5:]) < 0.7 * sum(seen[:5])
    told = method.probe(cast, Batch(images(16, 99), torch.arange(16)), Rng(0, torch.arange(16)))
    x = images(16, 99)
    with torch.no_grad():
        made = cast["codec"].decode(cast["codec"].encode(x)).clamp(-1, 1)
    psnr = (-10 * ((made - x) / 2).square().flatten(1).mean(1).log10()).mean()
    torch.testing.assert_close(told["codec/psnr"], psnr)
    assert 0 < float(told["codec/ssim"]) < 1


def test_what_cannot_be_is_refused() -> None:
    cast = players()
    for options in ({"kl": -1.0}, {"start": 2.0}, {"equivariance": -0.1}):
        with pytest.raises(UserError, match="autoencoding"):
            Autoencoding(**options)
    with pytest.raises(UserError, match="trains codec=own"):
        Autoencoding(perceptual=0.0).prepare(facts({**cast, "codec": nn.Identity()}))
    method = Autoencoding(perceptual=0.0)
    method.prepare(facts(cast))
    assert method.state_dict() == {}
    with pytest.raises(UserError, match="was trained on the features abcd"):
        method.load_state_dict({"features": "abcdef"})
    with pytest.raises(UserError, match="do not divide"):
        OwnAutoencoder((3, 18, 18), widths=(8, 8, 8))


def test_a_patch_is_judged_by_itself() -> None:
    """Logits far from a change do not see it."""
    torch.manual_seed(0)
    critic = PatchCritic((3, 64, 64), (4, 4))
    x = torch.rand(1, 3, 64, 64)
    other = x.clone()
    other[:, :, :8, :8] = 0
    apart = (critic(x) - critic(other)).abs()[0, 0]
    assert apart.shape == (32, 32)
    assert float(apart[16:, 16:].max()) == 0
    assert float(apart[:4, :4].max()) > 0
