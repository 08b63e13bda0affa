"""Completion by Tab: `lmsd --completion SHELL` prints a script, which asks `lmsd --complete LINE` each time.

    eval "$(lmsd --completion bash)"       zsh: the same with zsh       fish: lmsd --completion fish | source

Verbs, then options and groups ("optim.generator.lr=", "net="), then choices ("net=mlp") and runs (run=last).
Everything else is left to the shell, which completes file names.
"""

from collections.abc import Iterable
from pathlib import Path

from lmsd.cli.config.signatures import ANYTHING, Kind
from lmsd.errors import UserError

SHELLS = ("bash", "zsh", "fish")
CONFIGURED = ("train", "plan", "sweep", "verify-resume", "launch")
"""Verbs that take the options of the configuration."""


def main(arguments: list[str]) -> int:
    """Print the script of a shell (--completion SHELL), or the candidates for a line (--complete LINE)."""
    name, told = arguments[0], arguments[1:]
    if name == "--complete":
        print("\n".join(candidates(" ".join(told))))
        return 0
    if len(told) != 1 or told[0] not in SHELLS:
        raise UserError(f"lmsd --completion wants a shell: {', '.join(SHELLS)}")
    print(Path(__file__).with_name(f"lmsd.{told[0]}").read_text(), end="")
    return 0


def candidates(line: str) -> list[str]:
    """Completions of the last word of a command line, which may be empty."""
    *before, word = line.split(" ")
    found = following([part for part in before if part][1:], word)
    return sorted({name for name in found if name.startswith(word)})


def following(given: list[str], word: str) -> Iterable[str]:
    """What may follow the given words; values are returned with the name of their option."""
    from lmsd.checkpoints import by_age
    from lmsd.cli.config.compose import groups
    from lmsd.cli.verbs import DOTTED, FLAGS, VERBS, WORDS

    verb, (key, equals, _) = " ".join(given[: 1 + (given[:1] == ["data"])]), word.partition("=")
    if not verb or (verb in WORDS and len(given) <= len(verb.split())):
        return WORDS.get(verb, VERBS)
    if verb in ("runs", "report") or (equals and key in ("run", "resume", "init_from")):
        return [f"{key}={run}" if equals else run for run in ("last", *(path.name for path in by_age()))]
    known = taken(*verb.split(" ")) | beside(given, DOTTED.get(verb))
    choices = groups().get(key.partition("@")[0]) if verb in CONFIGURED or key in known else None
    if equals and choices:
        return [f"{key}={choice}" for choice in choices]
    known |= configured(given[1:]) if verb in CONFIGURED else {}
    if not equals:
        flags = ("--help", *FLAGS[verb]) if verb in FLAGS and len(given) < 2 else ()
        return [*flags, *(f"{name}=" for name in known)]
    each = [part.get("items", part) for part in known.get(key, ANYTHING).parts]
    words = [("true", "false") if part.takes("boolean") else part.get("enum", ()) for part in each]
    return [f"{key}={word}" for some in words for word in some]


def taken(verb: str, what: str = "") -> dict[str, Kind]:
    """The options that are a verb's own, the fields of its class, by name, and their kinds."""
    from lmsd.cli.config.options import options_of

    called = (what or verb).partition("-")[0].capitalize()
    places = (f"cli.verbs.{verb.replace('-', '_')}", "data.builders.options", f"data.{what}")
    found = [options_of(f"lmsd.{place}.{called}Options") for place in places]
    own = {name: argument.kind for each in found for name, argument in each.items()}
    own |= dict.fromkeys((("out", "workers", "part") if what == "build" else ("out",)) * bool(what), ANYTHING)
    return {f"{f'{verb}.' * (verb in ('sweep', 'plan'))}{name}": kind for name, kind in own.items()}


def beside(given: list[str], dotted: Iterable[tuple[str, str]] | None) -> dict[str, Kind]:
    """Options beside a verb's own: of the format that `lmsd export` was given, or those with dots."""
    from lmsd.cli.config.options import options_of

    formats = (("", f"lmsd.export.{word[7:]}.Options") for word in given if word.startswith("format="))
    found = [(prefix, options_of(place)) for prefix, place in dotted or formats]
    return {f"{dot}{name}": each.kind for dot, of in found for name, each in of.items()}


def configured(given: list[str]) -> dict[str, Kind]:
    """Groups and options of the configuration, given the choices among the other words."""
    from omegaconf import OmegaConf

    from lmsd.cli.config.compose import chooses, groups, load, parse
    from lmsd.cli.config.schema import root

    try:
        config = load([word for word in given if "=" in word and chooses(parse(word), groups())])
    except UserError:
        config = load([])
    found = root(OmegaConf.to_container(config)).leaves()
    return {**dict.fromkeys(groups(), ANYTHING), **{option.key: option.kind or ANYTHING for option in found}}
