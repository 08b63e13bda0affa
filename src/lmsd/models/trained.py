"""Generators of runs: rebuilt from one checkpoint, as a model to sample or as a base to tune.

checkpoint → spec → generator → weights of a player, raw or averaged
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmsd.checkpoints import WeightsRef, find, find_run, put, read, spec_of, weights
from lmsd.errors import UserError
from lmsd.models.generator import Generator
from lmsd.spec import build


def rebuilt(content: Mapping[str, Any], ema: str | None = None) -> Generator:
    """The generator in a checkpoint's content; ema: as of `checkpoints.weights`.

    Raises UserError for a content without a spec, or whose spec and weights are not of one generator.
    """
    built = build(spec_of(content))
    if not isinstance(built, Generator):
        raise UserError(f"its spec builds a {type(built).__name__} and no Generator")
    mismatch = put(built, weights(content, "generator", ema))
    if mismatch.missing:
        raise UserError(f"it lacks {', '.join(mismatch.missing[:5])}: its spec is of another net")
    return built


def from_run(path: str, *, channels: int, image_size: int) -> Generator:
    """The trained generator of a run, with all its parts: the base of a tuning.

    path: RUN, RUN@ema or RUN@HALFLIFE, a run's folder, id or checkpoint; channels, image_size: C and H = W of
    the images. Raises UserError where there is no such run, or it makes images of another size.
    """
    source = WeightsRef.parse(located(path))
    if source.player != "generator":
        raise UserError(f"generator.path={path}: it is the generator of a run that is read: RUN or RUN@ema")
    checkpoint = find(source.path if source.path.exists() else find_run(str(source.path)))
    try:
        found = rebuilt(read(checkpoint), source.ema)
    except UserError as error:
        raise UserError(f"generator.path={path}: {checkpoint}: {error}") from error
    asked = (channels, image_size, image_size)
    if found.image_shape != asked:
        raise UserError(
            f"generator.path={path} makes images of shape {list(found.image_shape)}, and data.channels= and "
            f"data.image_size= ask for {list(asked)}: give the same"
        )
    return found


def located(text: str) -> str:
    """A folder, or RUN|PATH[:player][@ema], with its path whole, so that it is found from anywhere.

    Raises UserError for `last`, which will be another run tomorrow.
    """
    if Path(text).exists():
        return str(Path(text).absolute())
    source = WeightsRef.parse(text)
    if str(source.path) == "last":
        raise UserError("generator.path=last would be another run tomorrow: give its folder or id")
    path = source.path
    if not path.exists():
        try:
            path = find_run(str(path))
        except UserError:
            return text  # whoever opens it says what is missing
    return str(path.absolute()) + text[len(str(source.path)) :]
