"""A trained run opened for the verbs that sample it, by `lmsd.load` alone."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmsd.checkpoints import manifests, newest
from lmsd.cli.build import pretrained
from lmsd.cli.config.compose import load as load_config
from lmsd.cli.config.compose import plain
from lmsd.cli.config.settings import SamplingOptions
from lmsd.errors import UserError
from lmsd.sampling import Generation, Model, Sampler, load
from lmsd.spec import build


def open_run(folder: Path, *, checkpoint: str | None, ema: str) -> Model:
    """The model of a run's checkpoint, the newest by default, or of a pipeline's folder that nothing trained.

    Raises UserError if there is none.
    """
    if pretrained.is_one(folder):
        return pretrained.opened(folder)
    kept = folder / "checkpoints"
    path = kept / checkpoint if checkpoint else newest(kept)
    if path is None or not path.is_file():
        names = ", ".join(known.name for known in manifests(kept)) or "none"
        raise UserError(f"{folder} has no checkpoint {checkpoint or 'yet'}; there are: {names}")
    return load(path, ema=ema)


def generation(model: Model, chosen: SamplingOptions) -> Generation:
    """How a model is to be sampled: as is asked for, and as the run does it where nothing is."""
    return model.generation(
        sampler=None if chosen.sampler is None else sampler(chosen.sampler),
        steps=chosen.steps,
        guidance=chosen.guidance,
        interval=chosen.interval or None,  # type: ignore[arg-type]
    )


def sampler(name: str) -> Sampler:
    """The sampler of a configuration of that name."""
    found: Sampler = build(plain(load_config("train", [f"sampler={name}"]).sampler))
    return found


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
    strange = model.unknown_words(prompts)
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
