"""The command line: verbs, Hydra's override grammar after them, and errors in one sentence.

    lmsd train experiment=digits seed=1        lmsd evaluate run=last split=test

Exit codes: 0 done; 2 the user's mistake, told in one sentence; 130 Ctrl-C; 1 a failure of ours.
Verbs import what they need themselves, so help and typos answer without torch.
"""

import gc
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from lmsd import __version__
from lmsd.errors import UserError, redact

Verb = Callable[[list[str]], int]

VERBS = {
    "train": "train an experiment, or resume a run",
    "sample": "prompts to a captioned grid of images",
    "edit": "change an image by a prompt, all of it or what a mask marks",
    "evaluate": "score a run on held-out data",
    "sweep": "many runs over some options, ranked by their scores on val",
    "runs": "list runs: state, how far, best score",
    "report": "write report.html of a run again",
    "data": "build data sets, index shards, train the feature extractor",
    "doctor": "look at versions, devices, disk and shards; say what to fix",
    "verify-resume": "kill and resume your own configuration, and compare it to a run that was not",
    "demo": "the whole chain on handwritten digits, in minutes",
}

HELP = """lmsd {version}: adversarial diffusion models, from shards to held-out scores.

  lmsd VERB [option=value ...]        lmsd VERB --help

{verbs}

Examples
  lmsd data build digits out=data/digits
  lmsd train experiment=digits data.shards=data/digits
  lmsd train experiment=digits objective=denoising seed=1 images=200_000
  lmsd train resume=last
  lmsd train --options optim
  lmsd sweep experiment=digits optim.generator.lr=1e-4,3e-4 objective.gamma=0.05,0.15
  lmsd sample run=last prompts='[a handwritten three, a handwritten seven]' seeds=[0,1,2]
  lmsd evaluate run=last split=test
  torchrun --nproc-per-node 2 -m lmsd.cli train experiment=digits devices=2
  eval "$(lmsd --completion bash)"          completion by Tab; zsh and fish alike
"""


def main(*arguments: str) -> None:
    """Run the verb of `arguments` and the process's own; exit with its code."""
    code = run([*arguments, *sys.argv[1:]])
    gc.freeze()  # the interpreter's last searches for garbage would take a fifth of a short answer's time
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one verb and return its exit code; a user's mistake becomes one sentence on stderr."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        rows = "\n".join(f"  {verb:15}{text}" for verb, text in VERBS.items())
        print(HELP.format(version=__version__, verbs=rows))
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(__version__)
        return 0
    try:
        if arguments[0] in ("--completion", "--complete"):
            from lmsd.cli.completion import main as complete

            return complete(list(arguments))
        return verb(arguments[0])(list(arguments[1:]))
    except UserError as error:
        print(f"lmsd: {error}", file=sys.stderr)
        if os.environ.get("LMSD_TRACE"):
            raise
        return 2
    except KeyboardInterrupt:
        print("lmsd: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if "torchvision::nms" in str(error):
            from lmsd.cli.doctor import installed, torchvision

            finding = torchvision(installed("torch"), installed("torchvision"))
            print(f"lmsd: {finding.what}; {finding.way}", file=sys.stderr)
            return 2
        if type(error).__name__ == "OutOfMemoryError":
            print(f"lmsd: {out_of_memory(error)}", file=sys.stderr)
            return 2
        where = " ".join([*getattr(error, "__notes__", []), "LMSD_TRACE=1 shows where"])
        said = redact(" ".join(str(error).split())[:300])
        print(f"lmsd: failed with {type(error).__name__}: {said} ({where})", file=sys.stderr)
        if os.environ.get("LMSD_TRACE"):
            raise
        return 1


def out_of_memory(error: Exception) -> str:
    """The sentence on a GPU that is too small, with what needs less and computes the same."""
    import re

    sizes = re.search(r"allocate ([\d.]+ \w+).*?capacity of ([\d.]+ \w+)", str(error))
    said = f" ({sizes[1]} more asked for, the device has {sizes[2]})" if sizes else ""
    return (
        f"out of GPU memory{said}; the same training in less: micro_batches=2 (4, 8, ...), or "
        "checkpointing=true"
    )


def verb(name: str) -> Verb:
    """The function behind a verb; an unknown one is refused with the nearest."""
    if name not in VERBS:
        from lmsd.cli.suggest import nearest

        raise UserError(f"unknown verb '{name}'{nearest(name, VERBS)}; verbs: {', '.join(VERBS)}")
    with uncollected():
        module = importlib.import_module(f"lmsd.cli.{name.replace('-', '_')}")
    return module.main  # type: ignore[no-any-return]


@contextmanager
def uncollected() -> Iterator[None]:
    """No search for garbage where nearly everything that is made stays: a tenth of an answer's time."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
