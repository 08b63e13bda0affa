"""`lmsd plan`: what a run needs and how long it takes, before a machine is rented for it.

Nothing is drawn, read or trained: the run's own code is played on shapes (`engine.imagined`). Of a pipeline's
folder the configurations are enough.
"""

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, TypeAlias

from omegaconf import DictConfig

from lmsd.cli.config import options
from lmsd.cli.config.compose import load
from lmsd.errors import Measure, Share, UserError

if TYPE_CHECKING:
    from lmsd.engine.plan import Device, Plan

Gpu: TypeAlias = Literal[
    "H100", "H100-PCIe", "H100-NVL", "H200", "B200", "A100", "A100-40GB", "L40S", "L4", "A10"
]
"""Those that `engine.plan` knows."""

HELP = """lmsd plan [options of lmsd train ...] [plan.gpu=H100] [plan.mfu=0.3]

Says, on any machine and in seconds to a minute: weights by part, memory a rank by kind, FLOPs, bytes between
ranks, images/s and hours, and what does not fit and how it would. No GPU, no weights and no data are needed;
of generator=pipeline the folder's JSON files are.

  plan.gpu=H100          H100, H200, B200, A100, A100-40GB, L40S, L4, A10
  plan.mfu=0.3           the share of its dense bfloat16 FLOP/s that training reaches; above 0, at most 1
  plan.failures=0.01     of one machine a day: how often to save, and what share of the time trains
  plan.disk=1            GB/s at which a checkpoint is written
  plan.restart=300       seconds from a failure until the run goes on

  lmsd plan experiment=cifar10 trainer=gpu
  lmsd plan experiment=pipeline_full generator.path=FOLDER data.image_size=1024 devices=8 precision=bf16-mixed
  lmsd plan experiment=emoji devices=8 num_nodes=125 batch_size=8000 plan.failures=0.01
"""


@dataclass(frozen=True)
class PlanOptions:
    """What is not of `lmsd train`; each is written plan.NAME=."""

    gpu: Gpu = "H100"
    mfu: Share = 0.3
    failures: Measure = 0.0
    disk: Measure = 1.0
    restart: Measure = 300.0


def main(arguments: list[str]) -> int:
    """Print the plan; exit code 0 whether the run fits or not."""
    own = [word for word in arguments if word.startswith("plan.")]
    chosen = options.read(PlanOptions, own, verb="plan (plan.NAME=)", prefix="plan.")
    if not chosen.mfu:
        raise UserError("plan.mfu=0 trains nothing: give a share above 0, such as 0.3")
    if not chosen.disk:
        raise UserError("plan.disk=0 writes nothing: give GB/s above 0")
    words = [word for word in arguments if word not in own]
    for word in words:
        if word.partition("=")[0] in {field.name for field in fields(PlanOptions)}:
            raise UserError(f"{word} is an option of the plan, not of its run: write plan.{word}")
    config = settled(load(words, run=True))
    from lmsd.engine.plan import Device

    device = Device.named(chosen.gpu)
    plan, absent = planned(config)
    if absent:
        print(f"note: no data at {absent}: captioned pictures of {config.data.image_size} pixels are assumed")
    print("\n".join(lines(config, plan, device, chosen)))
    return 0


def settled(config: DictConfig) -> DictConfig:
    """The configuration as it would be on GPUs. Raises UserError for what only they could say."""
    for name in ("resume", "extend"):
        if config[name] is not None:
            raise UserError(f"{name}= makes no sense here: a plan is of a run from its beginning")
    if config.devices == "auto":
        raise UserError(
            "devices=auto counts the GPUs of this machine, and a plan is for others: give devices=8, of each"
        )
    if config.precision == "auto":
        config.precision = "bf16-mixed"
    return config


def planned(config: DictConfig) -> "tuple[Plan, str | None]":
    """The plan of a run, and where its data would be if they are not."""
    from lmsd.cli.build.imagined import imagined
    from lmsd.engine.plan import Plan, Spread

    shards, checkpointing = config.data.shards, bool(config.checkpointing)
    with contextlib.redirect_stdout(io.StringIO()):  # notes on captions that may be made up
        found = imagined(config, half=config.precision != "32-true")
    spread = Spread(
        ranks=config.devices * config.num_nodes,
        lead=found.lead,
        sharded=config.fsdp,
        block=found.block,
        micro_batches=config.micro_batches,
        whole=found.whole,
    )
    plan = Plan(found.kept, found.recomputed, spread, found.buckets, checkpointing)
    return plan, str(shards) if found.absent else None


def lines(config: DictConfig, plan: "Plan", device: "Device", chosen: PlanOptions) -> Iterator[str]:
    """The plan in words."""
    ranks, size = plan.spread.ranks, config.batch_size
    yield f"{config.name}: {config.images:,} images in batches of {size:,} on {ranks:,} x {device.name}"
    yield ""
    yield from told_parts(plan)
    yield ""
    yield from told_memory(plan, device)
    yield ""
    yield from told_work(config, plan, device, chosen)
    if chosen.failures:
        yield ""
        yield from told_failures(config, plan, device, chosen)


def told_parts(plan: "Plan") -> Iterator[str]:
    """Weights by part."""
    yield f"{'weights':32}{'learn':>16}{'are frozen':>16}"
    for name, (learning, frozen) in plan.meant.parts.items():
        yield f"  {name:30}{learning:>16,}{frozen:>16,}"


def told_memory(plan: "Plan", device: "Device") -> Iterator[str]:
    """Memory by kind, and what to change where it is too much."""
    from lmsd.engine.plan import CONTEXT

    now, room = plan.memory(), device.memory - CONTEXT
    other = (
        None if plan.recomputed is None else plan.memory(plan.kept if plan.checkpointing else plan.recomputed)
    )
    named = f"checkpointing={'false' if plan.checkpointing else 'true'}"
    yield f"{'GB on a rank, when most is held':32}{'':>16}{'' if other is None else named:>22}"
    for kind, bytes_ in now.items():
        yield f"  {kind:30}{bytes_ / 1e9:>16,.2f}" + ("" if other is None else f"{other[kind] / 1e9:>22,.2f}")
    whole = sum(now.values())
    yield f"  {'in all':30}{whole / 1e9:>16,.2f}" + (
        "" if other is None else f"{sum(other.values()) / 1e9:>22,.2f}"
    )
    yield f"  of the {plan.largest.player}'s turn; {device.name} has {room / 1e9:,.1f} GB besides libraries"
    short = plan.short(device)
    if short is None:
        yield "  it fits"
        return
    yield f"  it does not fit: what finds no room, in this order, are the {short}. To change, one of:"
    for way in plan.ways(device):
        yield f"    {way}"


def told_work(config: DictConfig, plan: "Plan", device: "Device", chosen: PlanOptions) -> Iterator[str]:
    """FLOPs, bytes between ranks, and time."""
    from lmsd.engine.plan import PUBLISHED

    found = plan.meant
    yield f"{'work':32}"
    images = found.images * min(plan.spread.micro_batches, 2)
    for player in found.standing:
        if found.turn(player):
            each = f"{found.turn(player) / images / 1e9:,.2f} GFLOP an image"
            yield f"  a turn of the {player:18}{each}, {found.turns(player):.3g} turns a batch on average"
    yield f"  {'all, between turns too':30}{plan.an_image / 1e9:,.2f} GFLOP an image, the mean over the run"
    if plan.spread.ranks > 1:
        step = config.batch_size / plan.images_per_second(device, chosen.mfu)
        least = plan.sent / step / 1e9
        yield f"  {'between ranks':30}{plan.sent / 1e9:,.3f} GB that each sends a batch, which takes longer"
        yield f"  {'':30}than the {1e3 * step:,.1f} ms of the batch below {least:,.2f} GB/s"
    for share in (chosen.mfu, *PUBLISHED):
        speed = plan.images_per_second(device, share)
        hours = config.images / speed / 3600
        whose = " (published: least)" * (share == PUBLISHED[0]) + " (published: most)" * (
            share == PUBLISHED[1]
        )
        yield f"  at utilization {share:<15.2f}{speed:,.1f} images/s, {hours:,.2f} hours{whose}"
    if config.precision == "32-true":
        yield "  precision=32-true does not reach that on a GPU: take precision=bf16-mixed"


def told_failures(config: DictConfig, plan: "Plan", device: "Device", chosen: PlanOptions) -> Iterator[str]:
    """How often to save on machines that fail."""
    from lmsd.engine.failures import Failing

    between = 86_400 / (chosen.failures * config.num_nodes)
    failing = Failing(between=between, save=plan.saved / (chosen.disk * 1e9), restart=chosen.restart)
    interval = failing.daly()
    images = max(1, round(interval * plan.images_per_second(device, chosen.mfu)))
    yield f"failures: one in {between / 3600:,.2f} hours on {config.num_nodes:,} machines"
    yield f"  a checkpoint                  {plan.saved / 1e9:,.2f} GB, {failing.save:,.1f} s to write"
    young = failing.young() / 60
    yield f"  save every                    {interval / 60:,.1f} minutes (Daly; Young: {young:,.1f}),"
    yield f"                                checkpoint_every={images:_}"
    hours = config.images / plan.images_per_second(device, chosen.mfu) / 3600
    share = failing.share(interval)
    whole = f"{hours / share:,.2f} hours in all" if share else "it does not end, failures come before a save"
    yield f"  trains for                    {share:.1%} of the time: {whole}"
