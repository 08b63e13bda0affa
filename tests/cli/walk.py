"""Which files of ours a command walks through, one function call after the other, up to a constructor.

    python tests/cli/walk.py SRC    in a folder with data/digits; prints JSON

A file is entered by a call from another one or by a return to it. What runs while a module is imported is
left out. sites: lines of a file to which control has come back from another file.
"""

import json
import sys
from pathlib import Path
from types import FrameType

COMMAND = ["train", "experiment=digits", "generator.prediction=x0", "debug=limit"]
END = ("models/generator.py", "Generator.__init__")


class Walk:
    """Called by `sys.setprofile` at every call and return of a Python function, until `END`."""

    def __init__(self, root: Path) -> None:
        self.root, self.done, self.importing = f"{root}/", False, 0
        self.files: dict[str, None] = {}
        self.sites: dict[str, set[int]] = {}
        self._stack: list[str | None] = []

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        imports = code.co_name == "<module>" or "importlib" in code.co_filename
        if event == "call":
            self.importing += imports
            ours = code.co_filename.startswith(self.root) and not self.importing
            self._stack.append(code.co_filename.removeprefix(self.root) if ours else None)
            if ours:
                self.files[code.co_filename.removeprefix(self.root)] = None
            if ours and (self._stack[-1], code.co_qualname) == END:
                self.done = True
                sys.setprofile(None)
        elif event == "return" and self._stack:
            left = self._stack.pop()
            self.importing -= imports
            if left is not None and not self.importing:
                self._back(frame.f_back, left)

    def _back(self, frame: FrameType | None, left: str) -> None:
        """Note the line of ours, nearest below, that goes on after a file was left."""
        while frame is not None and not frame.f_code.co_filename.startswith(self.root):
            frame = frame.f_back
        if frame is not None:
            file = frame.f_code.co_filename.removeprefix(self.root)
            if file != left:
                self.sites.setdefault(file, set()).add(frame.f_lineno)


def main() -> int:
    source = Path(sys.argv[1]).resolve()
    sys.path.insert(0, str(source))
    from lmsd import cli

    walk = Walk(source / "lmsd")
    sys.setprofile(walk)
    code = cli.run(COMMAND)
    sys.setprofile(None)
    sites = {file: len(lines) for file, lines in walk.sites.items()}
    print(json.dumps({"code": code, "done": walk.done, "files": list(walk.files), "sites": sites}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
