"""Completion by Tab: `lmsd --completion SHELL` prints a script, which asks `lmsd --complete LINE` each time.

    eval "$(lmsd --completion bash)"       zsh: the same with zsh       fish: lmsd --completion fish | source

Verbs, then options and groups ("optim.generator.lr=", "net="), then choices ("net=mlp") and runs (run=last).
What is not known here is left to the shell, which completes file names.
"""

from collections.abc import Iterable, Mapping
from typing import Any

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

OPTIONS = {
    "sample": "lmsd.cli.verbs.sample.SampleOptions",
    "edit": "lmsd.cli.verbs.edit.EditOptions",
    "evaluate": "lmsd.cli.verbs.evaluate.EvaluateOptions",
    "sweep": "lmsd.cli.verbs.sweep.SweepOptions",
    "data build": "lmsd.data.builders.options.BuildOptions",
    "data features": "lmsd.cli.verbs.data.FeatureOptions",
}
"""The classes whose fields are the options of the other verbs."""

WORDS = {
    "data": ("build", "index", "features"),
    "data build": ("digits", "shapes", "folder", "cifar10"),
    "train": ("--help", "--options", "--schema", "--cfg"),
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
    from lmsd.cli.verbs import VERBS

    *before, word = line.split(" ")
    given = [part for part in before if part][1:]
    if not given:
        return starting(word, VERBS)
    verb, rest = given[0], given[1:]
    if word.startswith(("run=", "resume=", "init_from=")):
        return starting(word, (f"{word.partition('=')[0]}={run}" for run in known_runs()))
    if verb == "data":
        verb = " ".join(given[:2])
    plain = WORDS.get(verb, ()) if len(given) < 3 else ()
    if verb in CONFIGURED:
        own = fields(OPTIONS[verb], word, "sweep.") if verb == "sweep" else []
        return starting(word, [*plain, *own, *configured(word, rest)])
    if verb in ("runs", "report"):
        return starting(word, known_runs())
    if verb.startswith("data ") and len(given) < 3:
        return starting(word, plain)
    out = ["out="] * verb.startswith("data ")
    return starting(word, [*plain, *out, *(fields(OPTIONS[verb], word) if verb in OPTIONS else ())])


def starting(word: str, names: Iterable[str]) -> list[str]:
    """Those that begin with what is typed."""
    return sorted({name for name in names if name.startswith(word)})


def known_runs() -> list[str]:
    """`last` and the names of the runs in outputs/."""
    from lmsd.cli.runs import store

    return ["last", *(path.name for path in store.by_age("*"))]


def configured(word: str, rest: list[str]) -> list[str]:
    """Groups, options, and the choices of the one that is being typed, under what else stands in the line."""
    from lmsd.cli.config.schema import groups, kind_at, options

    key, equals, _ = word.partition("=")
    choices = groups()
    if equals and key.partition("@")[0] in choices:
        return [f"{key}={choice}" for choice in choices[key.partition("@")[0]]]
    from omegaconf import OmegaConf

    from lmsd.cli.config.compose import group_of, load, parse

    try:
        chosen = [part for part in rest if "=" in part and group_of(parse(part)) in choices]
        config = load("train", chosen)
    except UserError:
        config = load("train", [])
    tree: Any = OmegaConf.to_container(config)
    if equals:
        return values(key, kind_at(tree, key) or {})
    return [*(f"{name}=" for name in choices), *(f"{name}=" for name, *_ in options(tree))]


def fields(target: str, word: str, prefix: str = "") -> list[str]:
    """The options of a class, or the words that the one being typed takes."""
    from lmsd.cli.config.schema import groups
    from lmsd.cli.config.signatures import signature

    found = signature(target)
    known = found.arguments if found else {}
    key, equals, _ = word.partition("=")
    name = key.removeprefix(prefix)
    if not equals:
        return [f"{prefix}{name}=" for name in known]
    choices = [f"{key}={choice}" for choice in groups().get(key, ())]
    return choices or (values(key, known[name].kind) if name in known else [])


def values(key: str, kind: Mapping[str, Any]) -> list[str]:
    """The words that an option of a kind takes, in a list too, each after its name."""
    from lmsd.cli.config.kinds import parts

    each = [part.get("items", part) for part in parts(kind)]
    words = ["true", "false"] * any(part.get("type") == "boolean" for part in each)
    return [f"{key}={word}" for word in [*words, *(word for part in each for word in part.get("enum", ()))]]
