"""`lmsd serve`: a run or an exported folder behind an address, with OpenAI's way of asking for images."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lmsd.checkpoints import OUTPUTS, find_run
from lmsd.cli.config import options
from lmsd.cli.config.settings import SamplingOptions
from lmsd.cli.runs import store
from lmsd.errors import UserError
from lmsd.serving.options import Limits, Serving

if TYPE_CHECKING:
    from lmsd.sampling import Model
    from lmsd.serving.source import Source

HELP = """lmsd serve run=RUN|FOLDER|promoted [option=value ...]

  run=last|ID|FOLDER     a run, one of its checkpoints, or a folder that lmsd export wrote
  run=promoted           what lmsd promote chose, and whatever it chooses next, without a gap
  ema= checkpoint= sampler= steps= guidance= image_guidance= interval= adapters=      as in lmsd sample

  serve.host=127.0.0.1   of this machine alone; serve.port=8000, or 0 for a free one
  serve.keys=FILE        a key a line; requests must bear one: Authorization: Bearer KEY
  serve.votes=DIR        keep pairs and votes there (lmsd data votes DIR out=... makes shards of them)
  serve.batch=16         images drawn at once
  serve.wait_ms=5        how long an image waits for others to share its batch, at most 20
  serve.exact=true       every batch has that size: images are the same, bit for bit, whatever shares it
  serve.queue=256        images that may wait; beyond that the answer is 429 with Retry-After
  serve.device=cpu       or cuda, cuda:1
  serve.look_seconds=1   between two looks at what is promoted
  limit.prompt=1000 (characters)  limit.n=10  limit.steps=100  limit.seconds=60  limit.header_seconds=10
  limit.megabytes=16 (a body)  limit.megapixels=16 (a picture)  limit.connections=512  limit.pairs=10_000

  POST /v1/images/generations, /v1/images/edits      GET /v1/models, /health, /metrics      the page: /
  POST /pairs {prompt}, /votes {pair, choice: a|b|tie|both_bad}

Image j of a request is that of lmsd sample with the same prompt and seed at place j. SIGTERM answers what was
accepted and ends.
"""


@dataclass(frozen=True, kw_only=True)
class ServeOptions(SamplingOptions):
    """The options without a dot; the others are `Serving` and `Limits`."""


def main(arguments: list[str]) -> int:
    """Open the model, then serve it until a signal."""
    chosen, serving, limits = split(arguments)
    try:
        from lmsd.serving.program import keys_in, serve
        from lmsd.serving.service import Service
    except ModuleNotFoundError as error:
        raise UserError(f"lmsd serve needs {error.name}: pip install 'lmsd[serve]'") from error
    from lmsd.serving.ballots import Ballots

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    keys_in(serving.keys)
    source = source_of(chosen)
    opened = source.open()
    ballots = None if serving.votes is None else Ballots(serving.votes, room=limits.pairs)
    return serve(Service(opened, source, options=serving, limits=limits, ballots=ballots))


def split(words: Sequence[str]) -> tuple[ServeOptions, Serving, Limits]:
    """What is served, how, and within which limits."""

    def of(prefix: str) -> list[str]:
        return [word for word in words if word.startswith(prefix)]

    rest = [word for word in words if not word.startswith(("serve.", "limit."))]
    for prefix, kind in (("serve", Serving), ("limit", Limits)):
        others = kind.__annotations__.keys() - {field.name for field in fields(ServeOptions)}
        bare = next((word for word in rest if word.partition("=")[0] in others), None)
        if bare is not None:
            raise UserError(f"{bare}: lmsd serve has it under another name, {prefix}.{bare}")
    return (
        options.read(ServeOptions, rest, verb="serve"),
        options.read(Serving, of("serve."), verb="serve", prefix="serve."),
        options.read(Limits, of("limit."), verb="serve", prefix="limit."),
    )


def source_of(chosen: ServeOptions) -> "Source":
    """Where the model comes from: always the same, or what is promoted."""
    from lmsd.evaluation.pointer import POINTER
    from lmsd.serving.source import Source

    def opened(run: str, checkpoint: str | None) -> "Model":
        return model_of(replace(chosen, run=run, checkpoint=checkpoint or chosen.checkpoint))

    pointer = OUTPUTS / POINTER if chosen.run == "promoted" else None
    if pointer is not None and chosen.checkpoint is not None:
        raise UserError("run=promoted names its own checkpoint: leave checkpoint= out")
    return Source(opened, chosen.run, pointer)


def model_of(chosen: ServeOptions) -> "Model":
    """The model, with the sampler and the settings that were asked for as its own."""
    from lmsd.cli.build import trained
    from lmsd.cli.verbs.export import resampled
    from lmsd.models.exported import MANIFEST
    from lmsd.sampling import load
    from lmsd.tuning.merge import Adapter, attach

    if (Path(chosen.run) / MANIFEST).is_file():
        if chosen.checkpoint is not None:
            raise UserError(
                f"run={chosen.run} is an exported folder without checkpoints: leave checkpoint= out"
            )
        model = load(chosen.run, ema=chosen.ema)
    else:
        found = find_run(chosen.run)
        folder = store.folder_of(found)
        if folder != found:
            chosen = replace(chosen, checkpoint=found.name)
        model = trained.opened(folder, replace(chosen, adapters=()))[0]
    if chosen.adapters:
        attach(model.generator, [Adapter.parse(text) for text in chosen.adapters])
    return resampled(model, chosen)
