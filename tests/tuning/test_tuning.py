"""What moves in a tuned generator, and that nothing else does."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lmsd.checkpoints import put
from lmsd.errors import UserError
from lmsd.models.frozen import freeze, thaw, twin
from lmsd.models.pipeline import PipelineGenerator, from_pipeline
from lmsd.rng import Rng
from lmsd.tuning import Full, LoRA, TextualInversion, Tuning, bare, tuned
from lmsd.tuning.base import digest_of
from lmsd.types import Batch

sys.path.append(str(Path(__file__).parents[1] / "models"))
from tiny_pipelines import make

LAYOUTS = ["sd15", "sdxl", "sd3", "flux", "pixart", "sana"]
WORDS = ["a red circle", "a <thing> over a line"]
TUNINGS = {
    "lora": LoRA(4),
    "rslora": LoRA(4, rslora=True, alpha=2.0),
    "dora": LoRA(4, dora=True),
    "everywhere": LoRA(2, modules=["*"]),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("pipelines")
    return {layout: make(layout, place / layout) for layout in LAYOUTS}


def read(folder: Path) -> PipelineGenerator:
    """Without gradients, as the base will be: torch has other kernels for weights that have none."""
    torch.manual_seed(1)
    return from_pipeline(folder, image_size=32).requires_grad_(False)


def seen(generator, words=WORDS) -> Tensor:
    generator.eval()
    rng = Rng(0, torch.arange(len(words)))
    x = rng.normal(generator.shape, "x")
    t = torch.full((len(words),), 0.5 * generator.process.schedule.t_noise)
    cond = generator.condition(Batch(x=x, position=torch.arange(len(words)), text=words))
    return generator(x, t, cond)


def moved(generator) -> list[str]:
    """What a loss gives a gradient to."""
    seen(generator).square().mean().backward()
    return [name for name, p in generator.named_parameters() if p.grad is not None]


def stirred(generator) -> None:
    """Adapters as after some updates."""
    draw = torch.Generator().manual_seed(3)
    for parameter in generator.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=draw)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", TUNINGS)
def test_adapters_change_nothing_at_the_start_and_are_all_that_moves(folders, layout, name):
    generator = read(folders[layout])
    before = seen(generator).detach()
    tuned(generator, TUNINGS[name])
    assert torch.equal(seen(generator), before)
    names = [n for n, _ in generator.named_parameters()]
    assert names
    assert all("lora_" in n for n in names)
    held = {n for n, value in generator.state_dict().items() if isinstance(value, Tensor)}
    assert held == set(names)
    assert set(moved(generator)) == set(names)
    stirred(generator)
    assert float((seen(generator) - before).abs().max()) > 0.01


def test_a_twin_shares_the_base_and_has_adapters_of_its_own(folders):
    generator = tuned(read(folders["sdxl"]), LoRA(2, text=["q_proj"]))
    other = twin(generator)
    shared = {name: value.data_ptr() for name, value in generator.named_buffers() if value.numel() > 64}
    assert len(shared) > 100
    assert {name: dict(other.named_buffers())[name].data_ptr() for name in shared} == shared
    pairs = zip(generator.parameters(), other.parameters(), strict=True)
    assert all(one is not two and torch.equal(one, two) for one, two in pairs)
    before = seen(other).detach()
    stirred(generator)
    assert torch.equal(seen(other), before)
    assert not torch.equal(seen(generator), before)


@pytest.mark.parametrize(
    "tuning",
    [LoRA(2), LoRA(2, dora=True), Full(["attn2.*"]), TextualInversion("thing")],
    ids=["lora", "dora", "full", "words"],
)
def test_the_reference_is_the_base_with_its_adapters_off(folders, tuning):
    generator = tuned(read(folders["sd15"]), tuning)
    before = seen(generator).detach()
    reference = bare(generator)
    stirred(generator)
    assert torch.equal(seen(reference), before)
    assert not torch.equal(seen(generator), before)
    assert not list(reference.parameters())
    assert not [name for name, value in reference.state_dict().items() if isinstance(value, Tensor)]


def test_another_base_is_refused(folders, tmp_path):
    generator = tuned(read(folders["sd15"]), LoRA(2))
    kept = generator.state_dict()
    assert put(tuned(read(folders["sd15"]), LoRA(2)), kept).missing == ()
    other = read(folders["sd15"])
    with torch.no_grad():
        next(p for n, p in other.named_parameters() if n.endswith("conv_out.weight"))[-1, -1, -1, -1] += 1e-3
    with pytest.raises(UserError, match="were trained on a base of digest"):
        put(tuned(other, LoRA(2)), kept)


def test_weights_of_another_tuning_are_refused(folders):
    kept = tuned(read(folders["sd15"]), Full(["attn2.*"])).state_dict()
    with pytest.raises(UserError, match="shares no key"):
        put(tuned(read(folders["sd15"]), LoRA(2)), kept)
    with pytest.raises(UserError, match=r"lora_[AB].default.weight is .* here and .* there"):
        put(tuned(read(folders["sd15"]), LoRA(2)), tuned(read(folders["sd15"]), LoRA(4)).state_dict())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("vectors", [1, 3])
def test_a_new_word_has_rows_of_its_own(folders, layout, vectors):
    generator = read(folders[layout])
    plain, named = seen(generator, ["a red circle"]).detach(), seen(generator).detach()
    tables = [s.table() for s in generator.conditioner.spellers()]
    tuned(generator, TextualInversion("thing", vectors=vectors, init="circle"))
    sizes = {tuple(p.shape) for p in generator.parameters()}
    assert len(list(generator.parameters())) == len(tables)
    assert all(size[0] == vectors for size in sizes)
    torch.testing.assert_close(seen(generator, ["a red circle"]), plain, rtol=0, atol=0)
    assert not torch.equal(seen(generator), named)
    assert moved(generator)
    before = seen(generator).detach()
    stirred(generator)
    torch.testing.assert_close(seen(generator, ["a red circle"]), plain, rtol=0, atol=0)
    assert float((seen(generator) - before)[1].abs().max()) > 1e-4
    assert torch.equal(seen(generator)[:1], before[:1])


def test_one_of_two_encoders_learns_the_word(folders):
    generator = tuned(read(folders["sdxl"]), TextualInversion("thing", encoders=[2]))
    assert [n.split(".")[2] for n, _ in generator.named_parameters()] == ["1"]
    with pytest.raises(UserError, match="has 2 text encoders"):
        tuned(read(folders["sdxl"]), TextualInversion("thing", encoders=[3]))


def test_full_tuning_by_pattern_moves_these_weights_alone(folders):
    generator = read(folders["sd15"])
    assert tuned(generator, Full()) is generator
    before = seen(generator).detach()
    assert len(generator.state_dict()) > 100
    tuned(generator, Full(["attn2.to_*"], text=["layers.1.*"]))
    assert torch.equal(seen(generator), before)
    names = [name for name, _ in generator.named_parameters()]
    assert any("attn2.to_k" in name for name in names)
    assert any("text" not in name and "layers.1" in name for name in names)
    assert all("attn2.to_" in name or "layers.1" in name for name in names)
    assert set(moved(generator)) == set(names)


@pytest.mark.parametrize(
    ("tuning", "said"),
    [
        (lambda: LoRA(2, modules=["to_w"]), "no module is called to_w; the names of those"),
        (lambda: LoRA(2, modules=[]), "leave nothing to adapt"),
        (lambda: Full([]), "would let nothing move"),
        (lambda: LoRA(2, alpha=0.0), "alpha=0.0 must be above 0"),
        (lambda: TextualInversion("<thing>"), "is no word like my-cat"),
    ],
)
def test_what_cannot_be_tuned_is_refused(folders, tuning, said):
    with pytest.raises(UserError, match=said):
        tuned(read(folders["sd15"]), tuning())


def test_a_tuned_generator_is_not_tuned_again(folders):
    tuning: Tuning = LoRA(2)
    with pytest.raises(UserError, match="is tuned already"):
        tuned(tuned(read(folders["sd15"]), tuning), tuning)


def test_adapters_of_a_half_precision_base_are_in_float32(folders):
    generator = from_pipeline(folders["sd15"], image_size=32, net_precision="bfloat16")
    before = seen(generator).detach()
    tuned(generator, LoRA(2))
    assert {p.dtype for p in generator.parameters()} == {torch.float32}
    assert torch.equal(seen(generator), before)


def test_freezing_and_thawing_leave_the_weights(folders):
    net = read(folders["sd15"]).net
    before = digest_of(read(folders["sd15"]))
    names = [name for name, _ in net.named_parameters()]
    freeze(net, saved=False)
    assert not list(net.parameters())
    assert not net.state_dict()
    thaw(net)
    assert [name for name, _ in net.named_parameters()] == names
    assert set(net.state_dict()) == set(names)
    generator = read(folders["sd15"])
    freeze(generator.net, saved=True)
    assert digest_of(generator) == before
