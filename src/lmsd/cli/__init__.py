"""The command line: verbs, Hydra's override grammar after them, and errors in one sentence.

    lmsd train experiment=digits seed=1        lmsd evaluate run=last split=test

Exit codes: 0 done; 2 the user's mistake, told in one sentence; 130 Ctrl-C; 1 a failure of ours.
Verbs import what they need themselves, so help and typos answer without torch.
"""

import errno
import gc
import importlib
import os
import select
import sys
from collections.abc import Sequence
from typing import Any

from lmsd import __version__
from lmsd.cli.verbs import FLAGS, VERBS
from lmsd.errors import UserError, redact

REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
"""Error codes for a file that the user named wrongly or has no access to."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error codes for a place without room, which a write does not name."""

BARE = {
    "runs": "it lists all runs, or those with a word in their name: lmsd runs WORD",
    "doctor": "it looks at everything, and at shards that are named: lmsd doctor SHARDS",
}
"""Verbs without options, and what they take."""

NEEDY = (
    *(
        "sample",
        "edit",
        "evaluate",
        "export",
        "serve",
        "merge",
        "sweep",
        "report",
        "data",
        "update",
    ),
    *("promote", "ask", "launch", "compress"),
)
"""Verbs that print their help when nothing follows them."""

HYDRAS: dict[str, str] = {
    **dict.fromkeys(("m", "multirun"), "several runs are a sweep: lmsd sweep OPTION=VALUE,VALUE"),
    **dict.fromkeys(
        ("cd", "config-dir", "cp", "config-path"),
        "a folder of your own choices is named by the variable LMSD_CONFIG_DIR=FOLDER",
    ),
    **dict.fromkeys(("cn", "config-name"), "where to begin is an option: experiment=NAME"),
    **dict.fromkeys(("c", "info", "i", "p", "package", "resolve"), "look at it: lmsd train --cfg job"),
    **dict.fromkeys(("r", "run"), "lmsd train runs by itself: leave it out"),
    **dict.fromkeys(("sc", "shell-completion"), 'completion: eval "$(lmsd --completion bash)"'),
    "hydra-help": "lmsd train --help",
}
"""Hydra's own flags, and what to use instead."""

UNREAD = 141
"""Exit code when the reader of our output is gone (lmsd train --options | head -1): 128 + SIGPIPE, as shells
report for programs that this signal ends; nothing is printed."""

HELP = """lmsd {version}: adversarial diffusion models, from shards to held-out scores.

  lmsd VERB [option=value ...]        lmsd VERB --help

{verbs}

Examples
  lmsd data build digits out=data/digits
  lmsd train experiment=digits data.shards=data/digits
  lmsd train experiment=digits objective=denoising seed=1 images=200_000
  lmsd train resume=last
  lmsd train --options optim
  lmsd sweep experiment=digits optim.generator.lr=1e-4,3e-4 objective.game.penalty.gamma=0.05,0.15
  lmsd sample run=last prompts='[a handwritten three, a handwritten seven]' seeds=[0,1,2]
  lmsd evaluate run=last split=test
  torchrun --nproc-per-node 2 -m lmsd.cli train experiment=digits devices=2
  eval "$(lmsd --completion bash)"          completion by Tab; zsh and fish alike
"""


def main(*arguments: str) -> None:
    """Run the verb given by `arguments` and the command line; exit with its code."""
    code = run([*arguments, *sys.argv[1:]])
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        code = UNREAD
    if code == UNREAD:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for the interpreter's own last flush
    gc.freeze()  # the interpreter's last searches for garbage would take a fifth of a short answer's time
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one verb and return its exit code; a user's mistake becomes one sentence on stderr."""
    try:
        return answer(arguments)
    except UserError as error:
        print(f"lmsd: {error}", file=sys.stderr)
        if os.environ.get("LMSD_TRACE"):
            raise
        return 2
    except KeyboardInterrupt:
        print("lmsd: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and reader_gone():
            return UNREAD
        said = known_failure(error)
        if said:
            print(f"lmsd: {said}", file=sys.stderr)
            return 2
        where = " ".join([*vars(error).get("__notes__", []), "LMSD_TRACE=1 shows where"])
        said = redact(" ".join(str(error).split())[:300])
        print(f"lmsd: failed with {type(error).__name__}: {said} ({where})", file=sys.stderr)
        if os.environ.get("LMSD_TRACE"):
            raise
        return 1


def answer(arguments: Sequence[str]) -> int:
    """Help, version, completion, or what the verb does; the exit code."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        rows = "\n".join(f"  {verb:15}{text}" for verb, text in VERBS.items())
        print(HELP.format(version=__version__, verbs=rows))
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(__version__)
        return 0
    if arguments[0] in ("--completion", "--complete"):
        from lmsd.cli.config.completion import main as complete

        return complete(list(arguments))
    name, *words = arguments
    check_flags(name, words)
    module = verb(name)
    if {"-h", "--help"} & set(words) or (name in NEEDY and not words):
        print(module.HELP.replace("{groups}", listed() if name == "train" else ""), end="")
        return 0 if words else 2
    return int(module.main(words))


def listed() -> str:
    """The groups of a configuration and their choices, one a line."""
    from lmsd.cli.config.compose import groups

    return "\n".join(f"  {name:16}{', '.join(choices)}" for name, choices in groups().items())


def reader_gone() -> bool:
    """Whether standard output is a pipe without a reader."""
    poll = select.poll()
    poll.register(1, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def known_failure(error: Exception) -> str:
    """The message for what the system lacks or refuses, with the way out; empty for a fault of ours."""
    if "torchvision::nms" in str(error):
        from lmsd.cli.verbs.doctor import installed, torchvision

        finding = torchvision(installed("torch"), installed("torchvision"))
        return f"{finding.what}; {finding.way}"
    if type(error).__name__ == "OutOfMemoryError":
        return out_of_memory(error)
    if isinstance(error, OSError) and (error.errno in FULL or (error.errno in REFUSED and error.filename)):
        return redact(
            f"{error.filename or 'the disk'}: {error.strerror}; name another place, or mend this one"
        )
    return ""


def check_flags(name: str, words: Sequence[str]) -> None:
    """Refuse a flag that the verb does not take: options are written without dashes."""
    known = ("--help", "-h", *FLAGS.get(name, ()))
    for word in words if name in FLAGS else ():
        if word.startswith("-") and word not in known:
            from difflib import get_close_matches

            bare, equals, value = word.lstrip("-").partition("=")
            if bare in HYDRAS and name not in NEEDY[:3]:
                raise UserError(f"lmsd {name} has no option {word.partition('=')[0]}; {HYDRAS[bare]}")
            near = get_close_matches(bare, [flag.lstrip("-") for flag in known], n=1, cutoff=0.7)
            dotted = "sweep." * (name == "sweep")
            way = f": write options as {dotted}{bare or 'option'}={value if equals else 'VALUE'}"
            way = f": {BARE[name]}" if name in BARE else way
            flag = next((flag for flag in known if near and flag.lstrip("-") == near[0]), "")
            hint = f"; did you mean {flag}{f' {value}' * bool(value)}?" if flag else way
            told = word.partition("=")[0]
            raise UserError(f"lmsd {name} has no option {told}{hint}  (lmsd {name} --help)")


def out_of_memory(error: Exception) -> str:
    """The message for too little GPU memory, with options that need less and compute the same."""
    import re

    sizes = re.search(r"allocate ([\d.]+ \w+).*?capacity of ([\d.]+ \w+)", str(error))
    said = f" ({sizes[1]} more asked for, the device has {sizes[2]})" if sizes else ""
    return (
        f"out of GPU memory{said}; the same training in less: micro_batches=2 (4, 8, ...), or "
        "checkpointing=true"
    )


def verb(name: str) -> Any:
    """The module of a verb; for an unknown one, UserError with the nearest."""
    if name not in VERBS:
        from lmsd.cli.config.suggest import nearest

        raise UserError(f"unknown verb '{name}'{nearest(name, VERBS)}; verbs: {', '.join(VERBS)}")
    gc.disable()  # nearly all that an import makes stays: a tenth of a short answer's time
    module = importlib.import_module(f"lmsd.cli.verbs.{name.replace('-', '_')}")
    gc.enable()
    return module
