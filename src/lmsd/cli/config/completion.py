"""Completion by Tab: `lmsd --completion SHELL` prints a script, which asks `lmsd --complete LINE` each time.

    eval "$(lmsd --completion bash)"       zsh: the same with zsh       fish: lmsd --completion fish | source

Verbs, then options and groups ("optim.generator.lr=", "net="), then choices ("net=mlp") and runs (run=last).
What is not known here is left to the shell, which completes file names.
"""

from collections.abc import Iterable
from dataclasses import fields
from importlib import import_module
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lmsd.errors import UserError

BASH = r"""_lmsd() {
  local line="${COMP_LINE:0:COMP_POINT}" IFS=$'\n'
  local cur="${line##*[[:space:]]}"
  COMPREPLY=($(lmsd --complete "$line" 2>/dev/null))
  case "$COMP_WORDBREAKS" in *=*) COMPREPLY=("${COMPREPLY[@]#"${cur%"${cur##*=}"}"}");; esac
  case "${COMPREPLY[0]}" in *=) compopt -o nospace 2>/dev/null;; esac
}
complete -o default -F _lmsd lmsd
"""
ZSH = r"""#compdef lmsd
_lmsd() {
  local -a found
  found=("${(@f)$(lmsd --complete "${(j: :)words[1,CURRENT]}" 2>/dev/null)}")
  [[ -n "$found" ]] && compadd -Q -S '' -- $found || _files
}
compdef _lmsd lmsd
"""
FISH = """complete -c lmsd -a '(lmsd --complete (commandline -cp) 2>/dev/null)'
"""
SHELLS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
CONFIGURED = ("train", "sweep", "verify-resume")
"""Verbs whose options are those of the configuration."""

OPTIONS = {"sample": "SampleOptions", "edit": "EditOptions", "evaluate": "EvaluateOptions"}
WORDS = {
    "data": ("build", "index", "features"),
    "data build": ("digits", "shapes", "folder", "cifar10"),
    "train": ("--help", "--options", "--cfg"),
    "sweep": ("--help", "--dry-run"),
    "verify-resume": ("--help", "kills=", "kill_seed=", "out="),
}
"""What else may follow a verb."""


def main(arguments: list[str]) -> int:
    """Print the script of a shell (--completion SHELL), or the candidates for a line (--complete LINE)."""
    name, told = arguments[0], arguments[1:]
    if name == "--complete":
        print("\n".join(candidates(" ".join(told))))
        return 0
    if len(told) != 1 or told[0] not in SHELLS:
        raise UserError(f"lmsd --completion wants a shell: {', '.join(SHELLS)}")
    print(SHELLS[told[0]], end="")
    return 0


def candidates(line: str) -> list[str]:
    """What the last word of a command line, which may be empty, can become."""
    from lmsd.cli import VERBS

    *before, word = line.split(" ")
    given = [part for part in before if part][1:]
    if not given:
        return starting(word, VERBS)
    verb, rest = given[0], given[1:]
    if word.startswith(("run=", "resume=", "init_from=")):
        return starting(word, (f"{word.partition('=')[0]}={run}" for run in known_runs()))
    plain = WORDS.get(" ".join([verb, *rest[:1]]), ()) or (WORDS.get(verb, ()) if verb != "data" else ())
    if verb in CONFIGURED:
        return starting(word, [*plain, *configured(word, rest, swept=verb == "sweep")])
    if verb in ("runs", "report"):
        return starting(word, known_runs())
    if verb == "data":
        return starting(word, [*(WORDS["data"] if not rest else plain), *of_data(rest)])
    return starting(word, of_class(f"lmsd.cli.verbs.{verb}", OPTIONS[verb], word) if verb in OPTIONS else ())


def starting(word: str, names: Iterable[str]) -> list[str]:
    """Those that begin with what is typed."""
    return sorted({name for name in names if name.startswith(word)})


def known_runs() -> list[str]:
    """`last` and the names of the runs in outputs/."""
    from lmsd.cli.runs import store

    return ["last", *(path.name for path in store.by_age("*"))]


def configured(word: str, rest: list[str], *, swept: bool) -> list[str]:
    """Groups, options, and the choices of the one that is being typed, under what else stands in the line."""
    from lmsd.cli.config.folders import groups

    key = word.partition("=")[0]
    group = key.partition("@")[0]
    if "=" in word and group in groups():
        return [f"{key}={choice}" for choice in groups()[group]]
    from lmsd.cli.config.compose import group_of, load, parse
    from lmsd.cli.config.kinds import Flag
    from lmsd.cli.config.schema import leaves, rule

    try:
        chosen = [part for part in rest if "=" in part and group_of(parse(part)) in groups()]
        tree: Any = load("train", chosen)
    except UserError:
        tree = load("train", [])
    from omegaconf import OmegaConf

    tree = OmegaConf.to_container(tree)
    if "=" in word:
        kind = rule(tree, key)
        words = ("true", "false") if isinstance(kind, Flag) else getattr(kind, "options", ())
        return [f"{key}={value}" for value in words]
    own = of_class("lmsd.cli.verbs.sweep", "SweepOptions", "") if swept else []
    names = [name for name, _ in leaves(tree) if not name.rsplit(".", 1)[-1].startswith("_")]
    return [*(f"{name}=" for name in [*groups(), *names]), *(f"sweep.{name}" for name in own)]


def of_data(rest: list[str]) -> list[str]:
    """Options of `lmsd data build SOURCE` and `lmsd data features SHARDS`."""
    if len(rest) < 2 or rest[0] == "index":
        return []
    from lmsd.cli.config.signatures import arguments

    named = {
        "build": "lmsd.data.builders.options.BuildOptions",
        "features": "lmsd.cli.verbs.data.FeatureOptions",
    }
    return ["out=", *(f"{name}=" for name in arguments(named.get(rest[0], "")) or ())]


def of_class(module: str, name: str, word: str) -> list[str]:
    """The options of a small verb's dataclass, or the words that the one being typed takes."""
    kind = getattr(import_module(module), name)
    key, equals, _ = word.partition("=")
    hints = get_type_hints(kind)
    if equals:
        from lmsd.cli.config.folders import groups

        return [f"{key}={value}" for value in groups().get(key) or literals(hints.get(key))]
    return [f"{field.name}=" for field in fields(kind)]


def literals(hint: Any) -> list[str]:
    """The words of a Literal, also inside an optional one or a tuple."""
    if get_origin(hint) is Literal:
        return [str(value) for value in get_args(hint)]
    return [word for inner in get_args(hint) for word in literals(inner)]
