"""`lmsd ask`: a run that trains is asked for something, and does it at its next batch."""

import secrets
import sys
import time
from dataclasses import dataclass
from typing import Literal

from lmsd.cli.config import options
from lmsd.cli.config.suggest import nearest
from lmsd.cli.runs import store
from lmsd.errors import Measure, UserError

WORDS = ("sample", "evaluate", "save", "stop")
UNANSWERED = 3
"""Exit code where the run has not answered in time."""
PAUSE = 0.1

HELP = """lmsd ask RUN WORD [wait=SECONDS]         RUN: last, an id or a folder

  sample      draw the grid of samples now           evaluate    score it on val now
  save        write a checkpoint now                 stop        save and end, as after Ctrl-C

The run does it at its next batch, on all ranks, and its weights become what they would have become anyway.
The answer is waited for, 60 seconds by default; wait=0 asks only. Exit codes: 0 answered, 3 not yet.
"""


@dataclass(frozen=True, kw_only=True)
class AskOptions:
    """Options of `lmsd ask`; see HELP."""

    run: str
    what: Literal["sample", "evaluate", "save", "stop"]
    wait: Measure = 60.0


def main(arguments: list[str]) -> int:
    """Leave the request in the run's folder, and print the answer."""
    chosen = read(arguments)
    folder = store.find_folder(chosen.run)
    state = store.status(folder).get("state")
    if state != "running":
        raise UserError(f"{folder} does not train (it is {state or 'unknown'}): there is nobody to ask")
    from lmsd.engine.requests import ASKED, answered, ask

    if (folder / ASKED).exists():
        raise UserError(f"{folder / ASKED} is still to be answered: wait, or delete it to withdraw it")
    if store.state(folder) == "killed":
        print("note: its process is not on this machine, or was killed and answers nothing", file=sys.stderr)
    identity = secrets.token_hex(8)
    ask(folder, chosen.what, identity)
    deadline = time.monotonic() + chosen.wait
    while (found := answered(folder, identity)) is None:
        if time.monotonic() >= deadline:
            print(f"asked to {chosen.what}; not answered within {chosen.wait:g} s", file=sys.stderr)
            return UNANSWERED if chosen.wait else 0
        time.sleep(PAUSE)
    print(f"after {found['images']:,} images: {found['said']}")
    return 0


def read(words: list[str]) -> AskOptions:
    """The options; the run and what it is asked stand alone."""
    given = [word for word in words if "=" in word]
    bare = [word for word in words if "=" not in word]
    names = [name for name in ("run", "what") if name not in {word.partition("=")[0] for word in given}]
    found = dict(zip(names, bare, strict=False))
    if found.get("what", WORDS[0]) not in WORDS:
        way = nearest(found["what"], WORDS)
        raise UserError(f"lmsd ask RUN '{found['what']}': ask for one of {', '.join(WORDS)}{way}")
    if len(bare) > len(names):
        raise UserError(f"'{bare[len(names)]}' is one word too many: lmsd ask {' '.join(bare[: len(names)])}")
    named = [f"{name}={word}" for name, word in found.items()]
    return options.read(AskOptions, [*named, *given], verb="ask")
