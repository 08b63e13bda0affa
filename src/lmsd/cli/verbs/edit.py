"""`lmsd edit`: an image and a prompt to a changed image, all of it or what a mask marks."""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from lmsd.cli.config import options
from lmsd.cli.config.settings import SamplingOptions
from lmsd.cli.runs.written import writing
from lmsd.cli.verbs.sample import is_file, places
from lmsd.data.masks import open_image, read_mask
from lmsd.errors import Number, Seed, UserError
from lmsd.flat import flat

if TYPE_CHECKING:
    pass

HELP = """lmsd edit run=RUN image=FILE prompt=PROMPT [option=value ...]

  image=FILE             JPEG, PNG or WebP; cropped and resized to the run's square
  prompt='a blue star'   what it shall become; none for a run with conditioner=none
                         a run of objective=edit is told what to do with it, prompt='make it blue'
  strength=0.6           in (0, 1]: how far from the image; default 0.6, 1 with a mask or where the run sees
                         the image (objective=edit, inpaint); of S steps the nearest number to strength x S
                         is done (halves up, at least one)
  mask=FILE              white where it may change, gray: how much; of the image's shape; every black
                         pixel stays as it is, bit for bit
  seed=0
  steps= guidance= interval= sampler= ema= checkpoint= adapters= autoguidance=     as in lmsd sample
  image_guidance=1.5     how closely a run that sees the image keeps to it
  out=FILE.png           default: RUN/samples/edit-NNN.png, with a .json beside it
"""


@dataclass(frozen=True, kw_only=True)
class EditOptions:
    """Options of `lmsd edit`; see HELP."""

    sampling: SamplingOptions
    image: Path
    prompt: str | None = None
    mask: Path | None = None
    strength: Annotated[float, Number(0.01, 1)] | None = None
    seed: Seed = 0
    out: Path | None = None


def main(arguments: list[str]) -> int:
    """Edit and say where the picture lies."""
    print(edit(options.read(EditOptions, arguments, verb="edit")))
    return 0


def edit(chosen: EditOptions) -> Path:
    """Change one image and return the picture's path; what the mask leaves out keeps its bytes."""
    check(chosen)
    folder, out = places(chosen.sampling.run, chosen.out, "edit")
    import numpy as np
    import torch
    from PIL import Image

    from lmsd.cli.build.trained import facts, note_prompts, opened
    from lmsd.data.transforms import fit, scale
    from lmsd.rng import Rng
    from lmsd.sampling import first_knot
    from lmsd.types import levels

    model, generate = opened(folder, chosen.sampling)
    chosen = replace(chosen, strength=strength_of(chosen, model.generator.sees))
    words = prompt_of(chosen, model.generator.conditioner.reads)
    note_prompts(model, words)
    channels, size, _ = model.generator.image_shape
    whole = open_image(chosen.image, channels=channels)
    pixels = fit(whole, size)
    mask = None if chosen.mask is None else read_mask(chosen.mask, whole.shape[:2], size)
    batch = model.batch(words, scale(pixels[None]), n=None if words else 1)
    strength, steps = 1.0 if chosen.strength is None else chosen.strength, generate.settings.steps
    done = steps - first_knot(strength, steps)
    print(f"note: {done} of {steps} steps are done (strength={strength:g})", file=sys.stderr)
    made = generate.edit(
        batch,
        Rng(chosen.seed, batch.position),
        strength=strength,
        mask=None if mask is None else torch.from_numpy(mask[None].transpose(0, 3, 1, 2)),
    )
    found = levels(made[0]).permute(1, 2, 0).numpy()
    if mask is not None:
        found = np.where(mask > 0, found, pixels)
    record = {**flat(chosen), "run": folder.name, "out": out.name, "steps_done": done}
    record |= facts(model, generate)
    with writing(out):
        Image.fromarray(found if channels == 3 else found[:, :, 0]).save(out, format="PNG")
        out.with_suffix(".json").write_text(json.dumps(record, indent=1, default=str) + "\n")
    return out


def strength_of(chosen: EditOptions, sees: str) -> float:
    """How far to go from the image: all the way where the run sees it, or where a mask keeps the rest.

    sees: what the generator has beside x. Raises UserError for a run of inpainting without a mask.
    """
    if sees == "masked" and chosen.mask is None:
        raise UserError("this run fills in what a mask marks (objective=inpaint): give mask=FILE")
    if chosen.strength is not None:
        return chosen.strength
    return 0.6 if chosen.mask is None and sees == "nothing" else 1.0


def check(chosen: EditOptions) -> None:
    """Refuse mistakes that can be seen without a run."""
    if chosen.prompt is not None and not chosen.prompt.strip():
        raise UserError("prompt= is empty: say what the image should become, prompt='a blue star'")
    if chosen.prompt is not None and is_file(chosen.prompt):
        raise UserError(
            f"prompt={chosen.prompt} is a file: lmsd edit takes one prompt in words, prompt='a blue star'"
        )
    for path in (chosen.image, chosen.mask):
        if path is not None and path.parts[:1] in (("http:",), ("https:",), ("s3:",)):
            raise UserError(f"{path.parts[0]}//...: images are read from files: fetch it first")
        if path is not None and not path.is_file():
            raise UserError(f"{path}: there is no such image")
        if path is not None and chosen.out is not None and chosen.out.exists() and chosen.out.samefile(path):
            raise UserError(f"out={chosen.out} is the picture that is edited, or its mask: give another name")


def prompt_of(chosen: EditOptions, reads: str) -> list[str]:
    """The prompt in a list, or none for a run that was trained without; reads: what its conditioner reads."""
    if reads == "nothing" and chosen.prompt is not None:
        raise UserError(
            f"prompt='{chosen.prompt}' is given, and this run was trained without captions and classes "
            "(conditioner=none): leave it out"
        )
    if reads != "nothing" and chosen.prompt is None:
        raise UserError("lmsd edit needs prompt='a blue star' for this run: say what the image should become")
    return [] if chosen.prompt is None else [chosen.prompt]
