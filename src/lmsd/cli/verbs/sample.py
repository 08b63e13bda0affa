"""`lmsd sample`: prompts to a captioned grid of images, with a JSON that remakes it."""

import codecs
import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lmsd.cli.config import options
from lmsd.cli.config.settings import SamplingOptions
from lmsd.cli.runs import store
from lmsd.cli.runs.pipelines import as_run
from lmsd.cli.runs.written import check_out, writing
from lmsd.errors import Seed, UserError

if TYPE_CHECKING:
    from torch import Tensor

HELP = """lmsd sample run=RUN prompts=PROMPTS [option=value ...]

  run=last|ID|FOLDER     or pipeline=FOLDER, a diffusers folder, with image_size= and generator.precision=
                         prompts='[a red circle, a blue star]' or a text file, one prompt a line
  seeds=[0,1,2]          one row of images for each seed
  steps= guidance=       default: the run's own
  interval=[0.2,0.8]     guide only the steps that start at these times; default: the run's own
  ema=ema|raw|HALFLIFE   checkpoint=FILE       which weights; default the first average of the newest one
  sampler=few_step       another sampler by name: few_step, ddim, ancestral, heun, dpmpp
  out=FILE.png           default: RUN/samples/sample-NNN.png, with a .json beside it
  again=FILE.json        the same grid once more, bit for bit, from that .json; only out= may stand beside it
"""


@dataclass(frozen=True, kw_only=True)
class SampleOptions(SamplingOptions):
    """Options of `lmsd sample`; see HELP."""

    prompts: tuple[str, ...]
    seeds: tuple[Seed, ...] = (0,)
    out: Path | None = None


@dataclass(frozen=True)
class Again:
    """Options of `lmsd sample again=FILE.json`."""

    again: Path
    out: Path | None = None


def main(arguments: list[str]) -> int:
    """Sample and say where the grid lies."""
    if any(word.startswith("again=") for word in arguments):
        print(sample(remembered(options.read(Again, arguments, verb="sample again="))))
        return 0
    chosen = options.read(SampleOptions, as_run(arguments), verb="sample")
    print(sample(replace(chosen, prompts=tuple(prompts(chosen.prompts)))))
    return 0


def remembered(chosen: Again) -> SampleOptions:
    """The options that a grid was made with, from the .json beside it."""
    try:
        found = json.loads(chosen.again.read_text())["options"]
        lists = {name: tuple(value) for name, value in found.items() if isinstance(value, list)}
        known = SampleOptions(**{**found, **lists})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"again={chosen.again} is no .json that lmsd sample wrote beside a grid") from error
    return replace(known, out=chosen.out)


FILES = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".md")
"""Endings by which one word is a file's name and no prompt."""


def prompts(words: tuple[str, ...]) -> list[str]:
    """The prompts themselves, or the lines of the one file that is named."""
    path = Path(words[0])
    if len(words) > 1:
        file = next(
            (word for word in words if Path(word).suffix.lower() in FILES and Path(word).is_file()), None
        )
        if file is not None:
            raise UserError(
                f"prompts=[...] holds the file {file}: give one file alone, or the prompts themselves"
            )
    if len(words) > 1 or path.suffix.lower() not in FILES:
        return list(words)
    if not path.is_file():
        raise UserError(f"prompts={path}: there is no such file; give prompts='[a, b]', or a .txt of them")
    if path.suffix.lower() != ".txt":
        raise UserError(f"prompts={path}: prompts are read from a .txt file, one a line")
    try:
        text = decoded(path.read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts={path} cannot be read as text: {error}; save it as UTF-8") from error
    found = [line for line in re.split("\r\n|\n|\r", text) if line.strip()]
    if not found:
        raise UserError(f"prompts={path} holds none: write one a line")
    for line in found:
        sign = next((s for s in line if s < " " and s not in "\t\v\f"), None)
        if sign is not None:
            what = "NUL characters" if sign == "\0" else f"the control character {sign!r}"
            raise UserError(f"prompts={path} holds {what} and is no text: save it as UTF-8")
    return found


def decoded(content: bytes) -> str:
    """The text of a file in UTF-8, or in what the mark at its beginning says; without that mark.

    Lines end at line ends alone: U+2028, U+0085 and form feeds are part of a prompt.
    """
    for mark, name in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if content.startswith(mark):
            return content.decode(name)
    return content.decode("utf-8")


def sample(chosen: SampleOptions) -> Path:
    """Draw len(seeds) rows of len(prompts) images and return the grid's path."""
    if chosen.out is not None:
        check_out(chosen.out)
    folder = store.find_folder(chosen.run)
    out = chosen.out or free_name(folder / "samples")
    check_out(out)
    from lmsd.cli.bar import Bar
    from lmsd.cli.build.trained import facts, generation, note_prompts, open_run
    from lmsd.evaluation.grid import save_grid
    from lmsd.rng import Rng

    model = open_run(folder, checkpoint=chosen.checkpoint, ema=chosen.ema)
    generate = generation(model, chosen)
    note_prompts(model, chosen.prompts)
    batch = model.batch(chosen.prompts)
    images: list[Tensor] = []
    with Bar() as bar:
        for row, seed in enumerate(chosen.seeds):
            images += list(generate(batch, Rng(seed, batch.position)))
            bar.update(row + 1, len(chosen.seeds), "rows of images")
    captions = list(chosen.prompts) * len(chosen.seeds)
    settings = replace(chosen, run=str(folder), checkpoint=model.checkpoint.name, out=None)
    record = {**asdict(chosen), "run": folder.name, "out": out.name, **facts(model, generate)}
    record["options"] = asdict(settings)
    with writing(out):
        save_grid(images, captions, out, columns=len(chosen.prompts))
        out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    return out


def free_name(folder: Path, stem: str = "sample") -> Path:
    """The first unused sample-NNN.png of a folder."""
    number = 0
    while (folder / f"{stem}-{number:03d}.png").exists():
        number += 1
    return folder / f"{stem}-{number:03d}.png"
