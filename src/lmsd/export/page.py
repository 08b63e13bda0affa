"""The page of `format=web`, from its template: the table, the programs and the runtime within it."""

import base64
import gzip
import html
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path

from lmsd.export.gate import asked
from lmsd.export.standalone import TABLE
from lmsd.sampling.model import Model

PAGE = "index.html"
TEMPLATE = Path(__file__).with_name("page.html")
TAGS = ("x_T", "step", "z")
"""What noise is drawn for; the page knows their checksums and needs no way to make them."""


def write(model: Model, folder: Path, runtime: Mapping[str, Path]) -> None:
    """Write index.html beside the programs that it holds."""
    told = json.loads((folder / TABLE).read_text(encoding="utf-8"))
    told["tags"] = {tag: zlib.crc32(tag.encode()) for tag in TAGS}
    paths = {name: folder / part["file"] for name, part in told["programs"].items()} | dict(runtime)
    files = {name: packed(path) for name, path in paths.items()}
    settings = model.generation().settings
    side = model.generator.image_shape[1]
    filled = {
        "TITLE": html.escape(model.name),
        "ABOUT": f"Images of {side}x{side} pixels, {settings.steps} steps, guidance {settings.guidance:g}.",
        "PROMPT": html.escape(example(model)),
        "TOLD": script(told),
        "FILES": script(files),
    }
    text = re.sub("@([A-Z]+)@", lambda found: filled[found[1]], TEMPLATE.read_text(encoding="utf-8"))
    (folder / PAGE).write_text(text, encoding="utf-8")


def packed(path: Path) -> str:
    """A file, compressed, as text."""
    return base64.b64encode(gzip.compress(path.read_bytes(), mtime=0)).decode()


def script(value: object) -> str:
    """JSON that may stand in a script element."""
    return json.dumps(value).replace("<", "\\u003c")


def example(model: Model) -> str:
    """A prompt to begin with."""
    batch = asked(model, 4)
    return batch.text[3] if batch.text else "0"
