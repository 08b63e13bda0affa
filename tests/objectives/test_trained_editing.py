"""Editing that is trained: what the net sees, what is dropped, and masks by position."""

import pytest
import torch

from lmsd.errors import UserError
from lmsd.models.backbones import LabelTransformer, MLPBackbone, PooledUNet, TextTransformer, TextUNet
from lmsd.models.codec import Unshuffle
from lmsd.models.conditioner import LabelConditioner
from lmsd.models.conv_unet import ConvUNet
from lmsd.models.generator import Generator
from lmsd.objectives.base import Facts
from lmsd.objectives.editing import Editing, Inpainting, masks
from lmsd.process import Flow, Process
from lmsd.process.times import Uniform
from lmsd.rng import Rng
from lmsd.sampling import Generation, Settings, Tau
from lmsd.sampling.guidance import guided
from lmsd.types import Batch, Cond, Sizes


def net(image_dim: int, channels: int = 1, side: int = 8) -> MLPBackbone:
    torch.manual_seed(0)
    return MLPBackbone(Sizes(channels, side, pooled_dim=8, image_dim=image_dim), width=16, depth=1)


def generator(sees: str = "source", **options: object) -> Generator:
    made = net({"nothing": 0, "source": 1, "masked": 2}[sees])
    return Generator(
        made, Process(Flow()), prediction="x0", conditioner=LabelConditioner(3, 8), sees=sees, **options
    )


def trained(subject: Generator) -> Generator:
    """With weights that are not 0, so that everything that is seen counts."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in subject.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return subject


def batch(count: int = 4) -> Batch:
    rng = Rng(5, torch.arange(count))
    x, source = (rng.normal((1, 8, 8), tag).clamp(-1, 1) for tag in ("x", "source"))
    return Batch(x, torch.arange(count), label=torch.arange(count) % 3, extra={"source": source})


KINDS = {
    "mlp": lambda sizes: MLPBackbone(sizes, width=16, depth=1),
    "unet_conv": lambda sizes: ConvUNet(sizes, widths=(16, 16), blocks=(1, 1), patch=2),
    "unet_pooled": lambda sizes: PooledUNet(sizes, widths=(16, 32), head_dim=16, patch=2),
    "unet_text": lambda sizes: TextUNet(sizes, widths=(16, 32)),
    "transformer_text": lambda sizes: TextTransformer(sizes, layers=1, heads=2, head_dim=16),
    "dit_label": lambda sizes: LabelTransformer(sizes, classes=3, layers=1, heads=2, head_dim=16),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_net_does_not_see_the_image_and_learns_to(kind: str) -> None:
    """The added channels begin at 0, and have a gradient."""
    torch.manual_seed(0)
    subject = KINDS[kind](Sizes(1, 16, token_dim=8, pooled_dim=8, image_dim=2))
    with torch.no_grad():
        for name, parameter in subject.named_parameters():
            if not bool(parameter.any()) and ("out" in name or "head" in name):
                parameter.normal_(std=0.1)  # the last layer is 0 at the start
    rng = torch.Generator().manual_seed(0)
    x, one, other = (torch.randn(2, c, 16, 16, generator=rng) for c in (1, 2, 2))
    label = torch.tensor([0, 1])
    cond = Cond(
        tokens=None if kind == "dit_label" else torch.randn(2, 4, 8, generator=rng),
        mask=torch.ones(2, 4, dtype=torch.bool),
        pooled=torch.randn(2, 8, generator=rng),
        label=label,
    )
    time = torch.tensor([100.0, 700.0])
    made = [subject(x, time, Cond(**{**vars(cond), "image": image})) for image in (one, other)]
    assert torch.equal(*made)
    made[0].square().sum().backward()
    first = next(p for n, p in subject.named_parameters() if n.endswith(FIRST[kind]))
    assert float(first.grad[:, -1].abs().max()) > 0
    with pytest.raises(UserError, match="it sees an image beside x, and got none"):
        subject(x, time, cond)


FIRST = {
    "mlp": "inside.weight",
    "unet_conv": "stem.weight",
    "unet_pooled": "conv_in.weight",
    "unet_text": "conv_in.weight",
    "transformer_text": "pos_embed.proj.weight",
    "dit_label": "pos_embed.proj.weight",
}


def test_the_generator_is_shown_its_source_or_zeros() -> None:
    subject, given = generator(), batch()
    blind = torch.tensor([True, False, False, True])
    image = subject.condition(given, None, blind).image
    assert torch.equal(image[1:3], given.extra["source"][1:3])
    assert float(image[[0, 3]].abs().max()) == 0
    with pytest.raises(UserError, match=r"is shown none: lmsd edit image=FILE"):
        subject.condition(Batch(given.x, given.position, label=given.label))
    assert generator("nothing").condition(given).image is None


def test_a_source_goes_through_the_codec_as_x_does() -> None:
    codec = Unshuffle(2, scale=1.5, shift=0.1)
    subject = Generator(
        net(4, 4, 4), Process(Flow()), conditioner=LabelConditioner(3, 8), codec=codec, sees="source"
    )
    given = subject.encode(batch())
    assert torch.equal(given.extra["source"], codec.encode(batch().extra["source"]))


def test_an_inpainting_net_sees_the_mask_and_what_it_leaves() -> None:
    subject, given = generator("masked"), batch()
    mask = (torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    image = subject.condition(Batch(given.x, given.position, label=given.label, extra={"mask": mask})).image
    assert torch.equal(image[:, :1], mask)
    assert torch.equal(image[:, 1:], given.x * (1 - mask))
    everything = subject.condition(given).image
    assert torch.equal(everything, torch.cat([torch.ones(4, 1, 8, 8), torch.zeros(4, 1, 8, 8)], 1))


def test_what_is_dropped_are_the_shares_that_were_asked_for() -> None:
    method, seen = Editing(Uniform(), caption_dropout=0.1), []
    subject, given = trained(generator()), batch()
    plain = subject.condition

    def watched(batch: Batch, mute: torch.Tensor, blind: torch.Tensor) -> Cond:
        seen.append(torch.stack([mute, blind], 1))
        return plain(batch, mute, blind)

    subject.condition = watched  # type: ignore[method-assign]
    for step in range(250):
        method.loss(subject, given, Rng(0, torch.arange(4 * step, 4 * step + 4)))
    mute, blind = torch.cat(seen).T
    for both in (mute & ~blind, mute & blind, blind & ~mute):
        assert 0.07 < float(both.float().mean()) < 0.13


def test_masks_are_of_three_kinds_and_by_position() -> None:
    made = masks(Rng(0, torch.arange(400)), 16, 16)
    assert made.shape == (400, 1, 16, 16)
    assert set(made.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(made[100:200], masks(Rng(0, torch.arange(100, 200)), 16, 16))
    share = made.flatten(1).mean(1)
    assert 0.14 < float((share == 1).float().mean()) < 0.27
    assert bool((share > 0).float().mean() > 0.98)
    rows = made[:, 0].amax(2).sum(1) * made[:, 0].amax(1).sum(1)
    boxes = rows == made.flatten(1).sum(1)
    assert 0.6 < float(boxes.float().mean()) < 0.85  # boxes and the whole image


def test_two_guidances_are_the_formula() -> None:
    subject, given = trained(generator()).eval(), batch()
    everything = torch.ones(4, dtype=torch.bool)
    cond, null = subject.condition(given), subject.condition(given, everything)
    blind = subject.condition(given, everything, everything)
    x_t, t = Rng(0, torch.arange(4)).normal((1, 8, 8), "x"), torch.full((4,), 0.5)
    with torch.no_grad():
        full, image, nothing = (subject(x_t, t, c) for c in (cond, null, blind))
        found = guided(subject, cond, null, scale=2.0, image_scale=1.5)(x_t, t)
    torch.testing.assert_close(found, nothing + 1.5 * (image - nothing) + 2.0 * (full - image))


def test_sampling_shows_the_source_and_an_edit_shows_its_image() -> None:
    subject, given = trained(generator()), batch()
    generate = Generation(subject, Tau(), Settings(2))
    rng = Rng(0, given.position)
    made = generate(given, rng)
    other = generate(Batch(given.x, given.position, label=given.label, extra={"source": given.x}), rng)
    assert not torch.equal(made, other)
    plain = Batch(given.x, given.position, label=given.label)
    assert torch.equal(generate.edit(plain, rng, strength=1.0), other)


def test_inpainting_keeps_what_the_mask_leaves_and_sees_it() -> None:
    subject, given = trained(generator("masked")), batch()
    generate, rng = Generation(subject, Tau(), Settings(4)), Rng(0, given.position)
    mask = torch.zeros(4, 1, 8, 8)
    mask[:, :, :4] = 1
    plain = Batch(given.x, given.position, label=given.label)
    made = generate.edit(plain, rng, strength=1.0, mask=mask)
    assert torch.allclose(made[:, :, 4:], given.x[:, :, 4:], atol=1e-5)
    changed = plain.x.clone()
    changed[:, :, :4] *= -1  # what is masked is not seen
    again = generate.edit(Batch(changed, given.position, label=given.label), rng, strength=1.0, mask=mask)
    assert torch.equal(again, made)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match=r"set generator\.sees=source"):
        Editing(Uniform()).prepare(
            Facts([], lambda: None, {"generator": generator("masked")}, lambda width, seed: None)
        )
    with pytest.raises(UserError, match=r"caption_dropout=0\.5 of each kind"):
        Inpainting(Uniform(), caption_dropout=0.5)
    with pytest.raises(UserError, match="needs a net that takes an image of 1 channels"):
        Generator(net(2), Process(Flow()), conditioner=LabelConditioner(3, 8), sees="source")
    with pytest.raises(UserError, match="image_guidance is for a generator that sees an image"):
        guided(generator("nothing"), Cond(), Cond(), image_scale=2.0)
