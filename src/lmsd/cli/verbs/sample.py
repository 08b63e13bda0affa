"""`lmsd sample`: prompts to a captioned grid of images, with a JSON that remakes it."""

import codecs
import json
import re
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from lmsd.cli.build.words import reading
from lmsd.cli.config import options
from lmsd.cli.config.settings import SamplingOptions
from lmsd.cli.runs import store
from lmsd.cli.runs.written import check_out, writing
from lmsd.errors import Count, Seed, UserError
from lmsd.flat import flat, nested

if TYPE_CHECKING:
    from torch import Tensor

HELP = """lmsd sample run=RUN prompts=PROMPTS [option=value ...]

  run=last|ID|FOLDER     or pipeline=FOLDER, a diffusers folder, with image_size= and generator.precision=
                         prompts='[a red circle, a blue star]' or a text file, one prompt a line
  n=16                   so many images without prompts: of a run with conditioner=none; of others with
                         captions of val, as in the grids of their training, or with each class in turn
  seeds=[0,1,2]          one row of images for each seed
  size=48x32             WIDTHxHEIGHT, of a run with data.train.buckets=; default: its square
  steps= guidance=       default: the run's own
  image_guidance=        of a run that sees an image (objective=edit, inpaint); default: the run's own
  interval=[0.2,0.8]     guide only the steps that start at these times; default: the run's own
  autoguidance=RUN       or a checkpoint, [@ema|raw|HALFLIFE]: guide away from this weaker model instead of
                         from the image without a caption
  ema=ema|raw|HALFLIFE   checkpoint=FILE       which weights; default the first average of the newest one
  adapters='[A.safetensors, RUN*0.7]'          LoRAs to add, each at its strength
  sampler=few_step       another sampler by name: few_step, ddim, ancestral, heun, dpmpp, plms
  out=FILE.png           default: RUN/samples/sample-NNN.png, with a .json beside it
  again=FILE.json        the same grid once more, bit for bit, from that .json; only out= may stand beside it
"""


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """Options of `lmsd sample`; see HELP."""

    sampling: SamplingOptions
    prompts: tuple[str, ...] = ()
    n: Count | None = None
    seeds: tuple[Seed, ...] = (0,)
    size: str | None = None
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
    with reading(SampleOptions, arguments, verb="sample") as chosen:
        if chosen.prompts and chosen.n is not None:
            raise UserError(
                f"n={chosen.n} is for images without prompts: leave one of the two out; several images of "
                "each prompt are seeds=[0,1,2]"
            )
        if chosen.prompts == ("",) and "prompts=" in arguments:
            raise UserError("prompts= is empty: give prompts='[a, b]', or prompts=\"['']\" for no words")
        if not chosen.prompts and chosen.n is None:
            raise UserError(
                "lmsd sample needs prompts='[a red circle, a blue star]', or n=16 for images without"
            )
        print(sample(replace(chosen, prompts=tuple(prompts(chosen.prompts)))))
    return 0


def remembered(chosen: Again) -> SampleOptions:
    """The options that a grid was made with, from the .json beside it."""
    try:
        found = json.loads(chosen.again.read_text())["options"]
        lists = {name: tuple(value) for name, value in found.items() if isinstance(value, list)}
        known = nested(SampleOptions, {**found, **lists})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"again={chosen.again} is not a .json that lmsd sample wrote with a grid") from error
    return replace(known, out=chosen.out)


FILES = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".md")
"""Endings by which one word is a file's name and no prompt."""

MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
"""What a file may begin with, and the encoding that it tells."""


def is_file(word: str) -> bool:
    """Whether a prompt is the name of an existing file."""
    return Path(word).suffix.lower() in FILES and Path(word).is_file()


def prompts(words: tuple[str, ...]) -> list[str]:
    """The prompts themselves, or the lines of the one file that is named."""
    if len(words) != 1 or Path(words[0]).suffix.lower() not in FILES:
        file = next(filter(is_file, words), None)
        if file is not None:
            raise UserError(
                f"prompts=[...] holds the file {file}: give one file alone, or the prompts themselves"
            )
        return list(words)
    path = Path(words[0])
    if not path.is_file():
        raise UserError(f"prompts={path}: there is no such file; give prompts='[a, b]', or a .txt of them")
    if path.suffix.lower() != ".txt":
        raise UserError(f"prompts={path}: prompts are read from a .txt file, one a line")
    try:
        content = path.read_bytes()
        text = content.decode(next((MARKS[mark] for mark in MARKS if content.startswith(mark)), "utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts={path} cannot be read as text: {error}; save it as UTF-8") from error
    # Lines end at line ends alone: U+2028, U+0085 and form feeds are part of a prompt.
    found = [line for line in re.split("\r\n|\n|\r", text) if line.strip()]
    if not found:
        raise UserError(f"prompts={path} has no prompts: write one a line")
    sign = next((sign for line in found for sign in line if sign < " " and sign not in "\t\v\f"), None)
    if sign is not None:
        what = "NUL characters" if sign == "\0" else f"the control character {sign!r}"
        raise UserError(f"prompts={path} holds {what} and is not text: save it as UTF-8")
    return found


def sample(chosen: SampleOptions) -> Path:
    """Draw len(seeds) rows of images, one of each prompt, or n of none, and return the grid's path."""
    folder, out = places(chosen.sampling.run, chosen.out, "sample")
    from lmsd.cli.bar import Bar
    from lmsd.cli.build.trained import drawn, facts, note_prompts, opened
    from lmsd.evaluation.grid import save_grid
    from lmsd.rng import Rng

    model, generate = opened(folder, chosen.sampling, None if chosen.size is None else sides(chosen.size))
    asked = chosen.prompts or drawn(model, folder, chosen.n or 1)
    note_prompts(model, asked)
    batch = model.batch(asked, n=None if asked else chosen.n)
    images: list[Tensor] = []
    with Bar() as bar:
        for row, seed in enumerate(chosen.seeds):
            images += list(generate(batch, Rng(seed, batch.position)))
            bar.update(row + 1, len(chosen.seeds), "rows of images")
    captions = list(asked or [""] * len(batch)) * len(chosen.seeds)
    columns = None if chosen.n is not None and len(chosen.seeds) == 1 else len(batch)
    sampling = replace(
        chosen.sampling,
        run=str(folder),
        checkpoint=model.checkpoint.name,
        autoguidance=(generate.weaker or (None, None))[1],
    )
    again = flat(replace(chosen, sampling=sampling, prompts=asked, out=None))
    record = {**again, "run": folder.name, "out": out.name, **facts(model, generate), "options": again}
    with writing(out):
        save_grid(images, captions, out, columns=columns)
        out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    return out


def sides(text: str) -> tuple[int, int]:
    """Height and width of WIDTHxHEIGHT."""
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if found is None:
        raise UserError(f"size={text} is no size: give WIDTHxHEIGHT in pixels, e.g. size=48x32")
    return int(found[2]), int(found[1])


def places(run: str, out: Path | None, stem: str) -> tuple[Path, Path]:
    """The folder of a run, and the file to write: out, or the first unused STEM-NNN.png of its samples."""
    if out is not None:
        check_out(out)
    folder = store.find_folder(run)
    if out is not None:
        return folder, out
    names = (folder / "samples" / f"{stem}-{number:03d}.png" for number in count())
    free = next(name for name in names if not name.exists())
    check_out(free)
    return folder, free
