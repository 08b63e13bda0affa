"""From a rehearsal to figures: what fits, what is sent, what to change."""

import pytest

from lmsd.engine.imagined import KINDS, Kind
from lmsd.engine.plan import CONTEXT, MEMORY, Device, Plan, Spread
from lmsd.engine.rehearsal import Rehearsal, Stretch, Update

GB = 10**9


def rehearsal(activations: int, *, weights: int = 4, players: tuple[str, ...] = ("generator",)) -> Rehearsal:
    """Players of so many GB of weights that play once a batch of 2 images, at 6 TFLOP a turn."""
    memory: dict[Kind, int] = dict(
        zip(
            KINDS, (weights * GB, weights * GB, 2 * weights * GB, weights * GB, activations * GB), strict=True
        )
    )
    own: dict[Kind, int] = {kind: memory[kind] for kind in KINDS[:4]}
    updates = tuple(Update(name, 6e12, memory) for name in players)
    stretch = Stretch(1.0, 1, 6e12 * len(players), updates)
    return Rehearsal((stretch,), 2, {"generator.net": (weights, 0)}, dict.fromkeys(players, own))


def device(gigabytes: float) -> Device:
    return Device("this", 1e15, gigabytes * GB + CONTEXT)


def test_every_gpu_has_a_peak_and_a_memory() -> None:
    for name in MEMORY:
        found = Device.named(name)
        assert found.memory >= 24e9
        assert 1e14 < found.flops < 1e16


def test_what_fits_and_the_first_that_does_not() -> None:
    plan = Plan(rehearsal(10), rehearsal(1), Spread(1, "generator"), 0)
    assert sum(plan.memory().values()) == 30 * GB
    assert plan.short(device(31)) is None
    assert [plan.short(device(size)) for size in (3, 7, 15, 19, 25)] == [*KINDS]
    assert next(iter(plan.ways(device(25)))) == "checkpointing=true (21.0 GB)"
    assert "micro_batches=2 (20.5 GB)" in list(plan.ways(device(20.6)))[1]
    assert any(way.startswith("trainer=fsdp devices=2") for way in plan.ways(device(15)))


def test_a_batch_is_split_into_no_more_than_its_images_and_only_what_can_be_sharded_is() -> None:
    plan = Plan(rehearsal(10), rehearsal(8), Spread(1, "generator", whole=True), 0)
    said = list(plan.ways(device(23)))  # 20 beside the activations, of 2 images
    assert not [way for way in said if "micro_batches" in way]
    assert said[-1] == "a larger plan.gpu=, or smaller images: one alone does not fit"
    assert not [way for way in plan.ways(device(15)) if "fsdp" in way]
    assert list(plan.ways(device(29))) == [
        "checkpointing=true (28.0 GB)",
        "checkpointing=true micro_batches=2 (24.0 GB)",
    ]


def test_a_sharded_lead_holds_its_share_and_two_blocks() -> None:
    alone = Plan(rehearsal(10), None, Spread(4, "generator"), 0)
    plan = Plan(rehearsal(10), None, Spread(4, "generator", sharded=True, block=GB), 0)
    assert [plan.memory()[kind] for kind in KINDS] == [3 * GB, GB, 2 * GB, GB, 10 * GB]
    assert alone.sent == pytest.approx(2 * 0.75 * 4 * GB)
    assert plan.sent == pytest.approx(3 * 0.75 * 4 * GB)


def test_time_follows_the_flops_of_all_players() -> None:
    one = Plan(rehearsal(1), None, Spread(8, "generator"), 0)
    two = Plan(rehearsal(1, players=("generator", "discriminator")), None, Spread(8, "generator"), 0)
    assert one.an_image == 3e12
    assert one.images_per_second(device(80), 0.5) == pytest.approx(8 * 0.5e15 / 3e12)
    assert two.images_per_second(device(80), 0.5) == pytest.approx(8 * 0.5e15 / 6e12)
    assert two.saved == 2 * 16 * GB
