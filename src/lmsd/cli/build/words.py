"""A verb's words with pipeline=FOLDER: which of them configure the run that stands for it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from lmsd.cli.config import options
from lmsd.cli.config.settings import RunOptions
from lmsd.cli.runs import store
from lmsd.cli.runs.pipelines import KEY, OWN
from lmsd.errors import UserError
from lmsd.flat import Record
from lmsd.ranks import launched_rank


class WithRun(Protocol):
    """The options of a verb that samples a run."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def sampling(self) -> RunOptions:
        """The run, and how."""


OfRun = TypeVar("OfRun", bound=WithRun)


def read(kind: type[Record], words: list[str], *, verb: str) -> Record:
    """The options of a verb, of a run or of a pipeline's folder; refused before a run is made for one."""
    if any(word.startswith(KEY) for word in words):
        others = [word for word in apart(words)[1] if not word.startswith("run=")]
        options.read(kind, ["run=last", *others], verb=verb)
    return options.read(kind, as_run(words), verb=verb)


@contextmanager
def reading(kind: type[OfRun], words: list[str], *, verb: str) -> Iterator[OfRun]:
    """`read` for what follows: a run made for a pipeline's folder is taken away where that is refused."""
    made = any(word.startswith(KEY) for word in words)
    chosen = read(kind, words, verb=verb)
    try:
        yield chosen
    except UserError:
        if made and launched_rank() == 0:
            store.discard(Path(chosen.sampling.run))
        raise


def as_run(words: Sequence[str]) -> list[str]:
    """A verb's words with run=FOLDER in place of pipeline=FOLDER and of what configures it; the run is made.

    What has a dot in its name (data.shards=, generator.precision=) configures the run, and so do `OWN`.
    """
    paths = [word.removeprefix(KEY) for word in words if word.startswith(KEY)]
    if not paths:
        return list(words)
    if len(paths) > 1 or any(word.startswith("run=") for word in words):
        raise UserError("pipeline=FOLDER stands in the place of run=: give one of them, once")
    from lmsd.cli.build.pretrained import begun

    given, left = apart(words)
    return [f"run={begun(paths[0], given, words)}", *left]


def apart(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(what configures the run; the verb's own options), without pipeline=."""
    names = [(word, word.lstrip("+").partition("=")[0]) for word in words if not word.startswith(KEY)]
    given = [word for word, name in names if "." in name or name in OWN]
    return given, [word for word, _ in names if word not in given]
