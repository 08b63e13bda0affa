"""Captions of a run's training images as the option objective.prompts=, of which its own images are drawn."""

import re
from collections.abc import Iterable
from typing import Any

from lmsd.cli.build.experiment import shard_set
from lmsd.errors import UserError

MOST = 256
"""Captions of one data set."""


def prompts_of(config: Any, name: str) -> list[str]:
    """Captions of a run's training images, each once, at most MOST, evenly from their order by letters.

    name: of the run. Raises UserError where it has none.
    """
    data = shard_set(config)
    if not data.index("train").captions:
        raise UserError(f"{name} was trained without captions, of which its own images are drawn to keep it")
    train = data.split_set("train", real=True)
    texts = sorted(set(train.captions(range(min(len(train), 100_000)))))
    told = [text for text in texts if "${" not in text]  # which would be a reference
    return told[:: max(1, len(told) // MOST)]


def option(prompts: Iterable[str]) -> str:
    """The word objective.prompts=[...]."""
    return f"objective.prompts=[{', '.join(map(quoted, prompts))}]"


def quoted(text: str) -> str:
    """A text in Hydra's quotes, where backslashes are themselves but before a quote."""
    inner = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + "\\'" * bool(found[2]), text)
    return f"'{inner}'"
