"""Signatures read from source: the same names as inspect finds, without running anything."""

import inspect
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lmsd.cli.config.compose import config_dir
from lmsd.cli.config.kinds import words
from lmsd.cli.config.signatures import Unread, described, signature
from lmsd.spec import locate, targets

TARGETS = sorted(
    {
        target
        for path in config_dir().rglob("*.yaml")
        for target, _ in targets(OmegaConf.to_container(OmegaConf.load(path)))
    }
)


@pytest.mark.parametrize("target", TARGETS)
def test_names_and_defaults_are_those_of_the_running_code(target: str) -> None:
    live = inspect.signature(locate(target)).parameters
    found = signature(target)
    assert found is not None
    if list(live) == ["args", "kwargs"]:  # of nn.Module, which takes neither
        assert found.arguments == {}
        return
    assert found.more == any(parameter.kind is parameter.VAR_KEYWORD for parameter in live.values())
    assert list(found.arguments) == [name for name, p in live.items() if p.kind is not p.VAR_KEYWORD]
    for name, argument in found.arguments.items():
        default = live[name].default
        if argument.default is not Unread:
            assert argument.default == (list(default) if isinstance(default, tuple) else default)
        elif target.startswith("lmsd."):  # every default of ours is plain, and so an option's
            assert default is inspect.Parameter.empty, f"{target}: {name}={default}"


def test_a_package_of_the_users_is_read_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "package_of_tests"
    package.mkdir()
    (package / "__init__.py").write_text("from .nets import Base as Net, Child\nraise SystemExit\n")
    (package / "types.py").write_text("Mode: TypeAlias = Literal['soft', 'hard']\n")
    (package / "nets.py").write_text(
        "from .types import Mode\n"
        "class Base:\n"
        '    """A net. width, depth: of it; mode: how. Raises nothing."""\n'
        "    def __init__(self, width: int, *, depth: int = 1, mode: Mode = 'soft'): ...\n"
        "class Child(Base):\n    pass\n"
        "def loose(**options): ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = signature("package_of_tests.Net")
    assert found is not None
    assert {name: (words(a.kind), a.about) for name, a in found.arguments.items()} == {
        "width": ("a whole number, e.g. 1000", "of it"),
        "depth": ("a whole number, e.g. 1000", "of it"),
        "mode": ("one of soft, hard", "how"),
    }
    assert [argument.default for argument in found.arguments.values()] == [Unread, 1, "soft"]
    assert signature("package_of_tests.Child") == found
    loose = signature("package_of_tests.nets.loose")
    assert loose is not None
    assert (loose.arguments, loose.more) == ({}, True)
    assert signature("package_of_tests.absent") is signature("nowhere_at_all.Net") is signature("Net") is None
    assert "package_of_tests" not in sys.modules


def test_a_docstring_is_read_in_our_form() -> None:
    text = """Does it.

    widths: channels a level, multiples of 16; r1, r2: on reals, on fakes;
    lazy: every
    n-th. Raises UserError: never."""
    assert described(text, "widths") == "channels a level, multiples of 16"
    assert described(text, "r2") == "on reals, on fakes"
    assert described(text, "lazy") == "every n-th"
    assert described(text, "r") == described(text, "UserError") == ""
