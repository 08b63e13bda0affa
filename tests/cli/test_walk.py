"""How far it is from a command to the constructor that it names; ceilings that only ever go down."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_home import spoken

FILES = 18
CLI = 7
BACK = 0

ROOT = Path(__file__).parents[2]


def test_from_a_command_to_the_generators_constructor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`lmsd train experiment=digits generator.prediction=x0 debug=limit` in a process of its own; -s prints.

    debug=dry builds the same on shapes, and goes through three files more.
    """
    monkeypatch.chdir(tmp_path)
    spoken(["data", "build", "digits", "out=data/digits"])
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "cli" / "walk.py"), str(ROOT / "src")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["code"] == 0
    assert found["done"], "the walk never came to Generator.__init__"
    files = found["files"]
    inside = [name for name in files if name.startswith("cli/")]
    back = {name: count for name, count in found["sites"].items() if count > 1}
    print(f"\n{len(files)} files, {len(inside)} of them in cli/: {' '.join(files)}")
    print(f"\nentered by returns to more than one of its lines: {back}")
    assert {"cli/__init__.py", "cli/verbs/train.py", "models/generator.py"} <= set(files)
    assert len(files) <= FILES
    assert len(inside) <= CLI
    assert len(back) <= BACK
