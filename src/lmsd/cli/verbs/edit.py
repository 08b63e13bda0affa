"""`lmsd edit`: an image and a prompt to a changed image, all of it or what a mask marks."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lmsd.cli.config import options
from lmsd.cli.config.options import SamplingOptions
from lmsd.cli.runs import store
from lmsd.cli.runs.written import check_out, writing
from lmsd.cli.verbs.sample import free_name
from lmsd.errors import UserError

if TYPE_CHECKING:
    from lmsd.data.decode import Pixels

HELP = """lmsd edit run=RUN image=FILE prompt=PROMPT [option=value ...]

  image=FILE             JPEG, PNG or WebP; cropped and resized to the run's square
  prompt='a blue star'   what it shall become
  strength=0.6           in (0, 1]: how far from the image; default 0.6, with a mask 1
  mask=FILE              white where it may change; every other pixel stays as it is, bit for bit
  seed=0
  steps= guidance= interval= sampler= ema= checkpoint=      as in lmsd sample
  out=FILE.png           default: RUN/samples/edit-NNN.png, with a .json beside it
"""


@dataclass(frozen=True, kw_only=True)
class EditOptions(SamplingOptions):
    """Options of `lmsd edit`; see HELP."""

    image: Path
    prompt: str
    mask: Path | None = None
    strength: float | None = None
    seed: int = 0
    out: Path | None = None


def main(arguments: list[str]) -> int:
    """Edit and say where the picture lies."""
    if not arguments or "-h" in arguments or "--help" in arguments:
        print(HELP, end="")
        return 0 if arguments else 2
    chosen = options.read(EditOptions, arguments, verb="edit")
    if chosen.strength is None:
        chosen = replace(chosen, strength=0.6 if chosen.mask is None else 1.0)
    print(edit(chosen))
    return 0


def edit(chosen: EditOptions) -> Path:
    """Change one image and return the picture's path; what the mask leaves out keeps its bytes."""
    check(chosen)
    folder = store.find_folder(chosen.run)
    out = chosen.out or free_name(folder / "samples", "edit")
    check_out(out)
    import numpy as np
    import torch
    from PIL import Image

    from lmsd.cli.build.trained import facts, generation, note_unknown_words, open_run
    from lmsd.data.transforms import scale
    from lmsd.rng import Rng
    from lmsd.types import levels

    model = open_run(folder, checkpoint=chosen.checkpoint, ema=chosen.ema)
    generate = generation(model, chosen)
    note_unknown_words(model, [chosen.prompt])
    channels, size, _ = model.generator.image_shape
    pixels = read_image(chosen.image, size=size, channels=channels)
    mask = None
    if chosen.mask is not None:
        mask = read_image(chosen.mask, size=size, channels=1) >= 128
        if not mask.any():
            raise UserError(f"mask={chosen.mask} is black all over: paint white where the image may change")
    batch = model.batch([chosen.prompt], scale(pixels[None]))
    made = generate.edit(
        batch,
        Rng(chosen.seed, batch.position),
        strength=1.0 if chosen.strength is None else chosen.strength,
        mask=None if mask is None else torch.from_numpy(mask[None].transpose(0, 3, 1, 2)).float(),
    )
    found = levels(made[0]).permute(1, 2, 0).numpy()
    if mask is not None:
        found = np.where(mask, found, pixels)
    record = {**asdict(chosen), "run": folder.name, "out": out.name, **facts(model, generate)}
    with writing(out):
        Image.fromarray(found if channels == 3 else found[:, :, 0]).save(out, format="PNG")
        out.with_suffix(".json").write_text(json.dumps(record, indent=1, default=str) + "\n")
    return out


def check(chosen: EditOptions) -> None:
    """Refuse what needs no run to be seen wrong."""
    if not chosen.prompt.strip():
        raise UserError("prompt= is empty: say what the image shall become, prompt='a blue star'")
    for path in (chosen.image, chosen.mask):
        if path is not None and not path.is_file():
            raise UserError(f"{path}: there is no such image")
    if chosen.out is not None:
        check_out(chosen.out)


def read_image(path: Path, *, size: int, channels: int) -> "Pixels":
    """An image file as the run's data are prepared: uint8 [size,size,channels]."""
    from lmsd.data.decode import BadImage, decode
    from lmsd.data.transforms import fit

    try:
        return fit(decode(path.read_bytes(), channels=channels), size)
    except BadImage as error:
        raise UserError(f"{path}: {error}") from error
