"""A trained run opened for the verbs that sample it, by `lmsd.load` alone."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lmsd.checkpoints import manifests, newest
from lmsd.cli.build import pretrained
from lmsd.cli.build.weaker import weaker
from lmsd.cli.config.compose import load as load_config
from lmsd.cli.config.schema import plain
from lmsd.cli.config.settings import SamplingOptions
from lmsd.cli.runs import store
from lmsd.errors import UserError
from lmsd.sampling import Generation, Model, Sampler, load
from lmsd.spec import build
from lmsd.tuning.merge import Adapter, attach


def opened(
    folder: Path, chosen: SamplingOptions, size: tuple[int, int] | None = None
) -> tuple[Model, Generation]:
    """The model of a run's checkpoint, the newest by default, sampled as asked for, else as the run does it.

    A pipeline's folder that nothing trained has none. Raises UserError where there is no such checkpoint.
    """
    model = pretrained.opened(folder, chosen) if pretrained.is_one(folder) else trained(folder, chosen)
    if chosen.adapters:
        attach(model.generator, [Adapter.parse(text) for text in chosen.adapters])
    return model, model.generation(
        sampler=None if chosen.sampler is None else sampler(chosen.sampler),
        steps=chosen.steps,
        guidance=chosen.guidance,
        interval=chosen.interval or None,  # type: ignore[arg-type]
        image_guidance=chosen.image_guidance,
        autoguidance=None if chosen.autoguidance is None else weaker(folder, chosen.autoguidance),
        size=size,
    )


def trained(folder: Path, chosen: SamplingOptions) -> Model:
    """The model of a run's checkpoint."""
    kept = folder / "checkpoints"
    path = store.checkpoint_at(folder, chosen.checkpoint) if chosen.checkpoint else newest(kept)
    if path is None or not path.is_file():
        names = ", ".join(known.name for known in manifests(kept)) or "none"
        raise UserError(f"{folder} has no checkpoint {chosen.checkpoint or 'yet'}; there are: {names}")
    return load(path, ema=chosen.ema)


def sampler(name: str) -> Sampler:
    """The sampler of a configuration of that name."""
    found: Sampler = build(plain(load_config([f"sampler={name}"]).sampler))
    return found


def drawn(model: Model, folder: Path, n: int) -> tuple[str, ...]:
    """What n images show that nobody gave prompts for: captions of val, or each class in turn, or nothing.

    The captions are the first that evaluation takes, which are those of the grids made in training.
    """
    conditioner = model.generator.conditioner
    if conditioner.reads == "nothing":
        return ()
    if conditioner.classes:
        print(f"note: images of the classes 0 to {conditioner.classes - 1} in turn", file=sys.stderr)
        return tuple(str(number % conditioner.classes) for number in range(n))
    from lmsd.cli.build.experiment import shard_set

    try:
        held_out = shard_set(store.config_of(folder)).split_set("val")
        if n > len(held_out):
            raise UserError(f"there are {len(held_out)}")
        rows = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(0))[:n]
        found = held_out.captions(rows)
    except UserError as error:
        raise UserError(
            f"n={n} without prompts= takes captions of the run's val shards, and {error}; or give "
            "prompts='[a, b]'"
        ) from error
    print(f"note: images of {n} captions of val; prompts='[a, b]' draws your own", file=sys.stderr)
    return tuple(found)


def note_prompts(model: Model, prompts: Sequence[str]) -> None:
    """Name on stderr the words that the run's own tokenizer never learned whole, and prompts that are cut."""
    conditioner = model.generator.conditioner
    cut = [prompt for prompt in prompts if conditioner.kept(prompt) != prompt]
    if cut:
        more = f", and so with {len(cut) - 1} more" if len(cut) > 1 else ""
        kept = conditioner.kept(cut[0])
        print(
            f"note: a prompt is longer than the model's context: '{cut[0]}' is read as '{kept}'{more}",
            file=sys.stderr,
        )
    strange = conditioner.unknown(prompts)
    if strange:
        named = ", ".join(f"'{word}'" for word in strange[:5])
        print(f"note: {named}: rare in the captions of this run, or never in them", file=sys.stderr)


def facts(model: Model, generate: Generation) -> dict[str, Any]:
    """What was sampled from, and how."""
    return {
        "checkpoint": model.checkpoint.name,
        "ema": model.ema,
        **vars(generate.generator).get("about", {}),
        **generate.record(),
    }
