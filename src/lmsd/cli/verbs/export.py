"""`lmsd export`: a trained run to a folder that stands alone and is proven to be the same."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmsd.checkpoints import find_run
from lmsd.cli.config import options
from lmsd.cli.config.settings import SamplingOptions
from lmsd.cli.config.signatures import signature
from lmsd.cli.config.suggest import nearest
from lmsd.cli.runs import store
from lmsd.errors import UserError
from lmsd.export import FORMATS, MANIFEST, FormatName

if TYPE_CHECKING:
    from lmsd.sampling import Model

KEPT = ("safetensors", "lora", "kohya", "embedding")
"""Formats that hold a tuned generator as it is; for the others adapters are merged into the weights."""

SAID = """lmsd export run=RUN format=NAME to=FOLDER [option=value ...]

  run=last|ID|FOLDER     a run, one of its checkpoints, or a folder that lmsd export wrote
  to=FOLDER              a new folder: lmsd.json, the model, README.md (its card), parity.json
  ema=ema|raw|HALFLIFE   checkpoint=FILE       which weights; default the first average of the newest one
  sampler= steps= guidance= image_guidance= interval=
                         what the exported model is sampled with; default: the run's own
  license=apache-2.0     of the model, by the hub's name, for the card
  hub=USER/NAME          also upload the folder there, after everything else

Formats, each with its own options
FORMATS
Before the folder gets its name it is opened and compared with the run: x0 at all knots and several batch
sizes, and whole images. What differs is not handed out.
"""


HELP = SAID.replace("FORMATS", "\n".join(f"  {name:21}  {said}" for name, said in FORMATS.items()))


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of `lmsd export` that every format has; see HELP."""

    sampling: SamplingOptions
    format: FormatName
    to: Path
    license: str | None = None
    hub: str | None = None


def main(arguments: list[str]) -> int:
    """Export, and say where the folder lies and how near it is."""
    chosen, given = split(arguments)
    from lmsd.export.card import Told
    from lmsd.export.folder import check_place, export

    check_place(chosen.to)
    if chosen.sampling.adapters:
        raise UserError("adapters= are merged before the export: lmsd merge run=... adapters=... to=FOLDER")
    model, records = opened(chosen.sampling)
    if chosen.format not in KEPT:
        model = without_adapters(model)
    told = Told(["export", *map(published, arguments)], chosen.license, records, base_of(model))
    parity = export(model, chosen.format, chosen.to, given, told)
    for row in parity.rows:
        print(f"note: {row}", file=sys.stderr)
    if chosen.hub is not None:
        from lmsd.export.hub import push

        print(push(chosen.to, chosen.hub), file=sys.stderr)
    print(chosen.to)
    return 0


def without_adapters(model: "Model") -> "Model":
    """The same model with its adapters in its weights, for formats that know of none.

    Raises UserError for a word of its own, which is no change of weights, and for changed text encoders.
    """
    from lmsd.tuning import is_tuned
    from lmsd.tuning.low import changes
    from lmsd.tuning.merge import merged, whole

    if not is_tuned(model.generator):
        return model
    found = changes(model.generator)
    if not found or any(component.startswith("text_encoder") for component, _ in found):
        raise UserError(
            f"{model.name} is tuned otherwise than by adapters of its net alone: take format=safetensors, "
            "lora or embedding"
        )
    generator = merged(model.generator).requires_grad_(False).eval()
    return replace(model, generator=generator, spec=whole(model.spec, text=False))


def split(words: Sequence[str]) -> tuple[ExportOptions, Any]:
    """The options of every format, and those of the one that is named."""
    name = format_in(words)
    own = signature(f"lmsd.export.{name}.Options")
    keys = own.arguments if own else {}
    apart = [word for word in words if word.partition("=")[0] in keys]
    kind: type[Any] = import_module(f"lmsd.export.{name}").Options
    chosen = options.read(ExportOptions, [word for word in words if word not in apart], verb="export")
    return chosen, options.read(kind, apart, verb=f"export format={name}")


def format_in(words: Sequence[str]) -> str:
    """The format that the words name, which decides what other options there are."""
    named = [word.partition("=")[2] for word in words if word.startswith("format=")]
    if not named:
        raise UserError(f"lmsd export needs format=NAME: {', '.join(FORMATS)}")
    if named[0] not in FORMATS:
        raise UserError(f"format={named[0]} is none of {', '.join(FORMATS)}{nearest(named[0], FORMATS)}")
    return named[0]


def opened(chosen: SamplingOptions) -> tuple["Model", Mapping[str, Any]]:
    """The model with the settings that were asked for in its configuration, and its own scores by split."""
    from lmsd.cli.build import trained
    from lmsd.evaluation.records import newest_records
    from lmsd.sampling import load

    if (Path(chosen.run) / MANIFEST).is_file():
        if chosen.checkpoint is not None:
            raise UserError(
                f"run={chosen.run} is an exported folder without checkpoints: leave checkpoint= out"
            )
        return resampled(load(chosen.run, ema=chosen.ema), chosen), {}
    found = find_run(chosen.run)
    folder = store.folder_of(found)
    if folder != found:
        if chosen.checkpoint is not None:
            raise UserError(f"run={chosen.run} is a checkpoint: leave checkpoint= out")
        chosen = replace(chosen, checkpoint=found.name)
    made_from = trained.opened(folder, chosen)[0]
    model = resampled(made_from, chosen)
    records = {
        split: record
        for split, record in newest_records(folder).items()
        if model.images == record["setup"].get("images")  # of training; lmsd evaluate names the file
        or made_from.checkpoint.name == record["setup"].get("checkpoint")
    }
    return model, records


def resampled(model: "Model", chosen: SamplingOptions) -> "Model":
    """The same model, with the sampler and the settings that were asked for as its own."""
    if chosen.autoguidance is not None:
        raise UserError("autoguidance= takes two models, and this has one: sample, edit and evaluate have it")
    from lmsd.cli.config.compose import load
    from lmsd.cli.config.schema import plain

    own = dict(model.config["evaluate"])
    asked = {"steps": chosen.steps, "guidance": chosen.guidance, "interval": chosen.interval or None}
    own |= {name: value for name, value in asked.items() if value is not None}
    config = {**model.config, "evaluate": own}
    if chosen.sampler is not None:
        config["sampler"] = plain(load([f"sampler={chosen.sampler}"]).sampler)
    found = replace(model, config=config)
    found.generation()  # which refuses what the run cannot be sampled with
    return found


def published(word: str) -> str:
    """A word of the command line as a card may show it: without secrets and folders of this machine."""
    key, equals, value = store.shown(word).partition("=")
    return f"{key}{equals}{Path(value).name if Path(value).is_absolute() else value}"


def base_of(model: "Model") -> str | None:
    """The name of the pretrained model that a run began from, as its folder has it."""
    about: Mapping[str, str] = vars(model.generator).get("about", {})
    return next(iter(about.values()), None)
