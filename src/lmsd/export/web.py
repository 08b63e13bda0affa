"""`format=web`: a folder as of `format=onnx`, and index.html, one page that draws in the reader's browser.

The page holds the programs and onnxruntime-web, compressed; it loads nothing from elsewhere and works from
the disk. onnxruntime-web comes from the npm registry when the page is made, once, and is kept.
"""

import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lmsd.errors import UserError
from lmsd.export.base import Parity, Written
from lmsd.files import cache_folder

if TYPE_CHECKING:
    from lmsd.sampling.model import Model

PACKAGE = "onnxruntime-web"
VERSION = "1.30.0"
FILES = {"runtime": "ort.wasm.bundle.min.mjs", "wasm": "ort-wasm-simd-threaded.wasm"}
"""What of the package's dist/ goes into the page."""


@dataclass(frozen=True)
class Options:
    """runtime: a folder with the npm package onnxruntime-web; null: it is fetched with npm."""

    runtime: Path | None = None


def write(model: "Model", folder: Path, options: Options) -> Written:
    """The programs and the page. Raises UserError for a run with a pretrained tokenizer, and without npm."""
    from lmsd.export import onnx, page
    from lmsd.export.standalone import TABLE

    runtime = runtime_in(options.runtime)
    written = onnx.write(model, folder, onnx.Options(loop=False))
    if not (folder / TABLE).is_file():
        raise UserError("format=web is for runs with a tokenizer of their own: take format=onnx")
    page.write(model, folder, runtime)
    note = "index.html is a page that draws by itself in a browser, from the disk or from a server."
    return Written(written.opens, written.spec, written.needs, (*written.notes, note))


def check(folder: Path, model: "Model") -> Parity:
    """That of `format=onnx`, whose programs and table the page holds."""
    from lmsd.export.onnx import check as of_programs

    return of_programs(folder, model)


def runtime_in(given: Path | None) -> dict[str, Path]:
    """The files of onnxruntime-web: of the given package, or of the one that is kept, fetched if need be.

    Raises UserError where they are not there and cannot be had.
    """
    place = given or cache_folder() / f"{PACKAGE}-{VERSION}" / "package"
    found = {name: place / "dist" / file for name, file in FILES.items()}
    if given is None and not all(path.is_file() for path in found.values()):
        fetch(place.parent)
    missing = next((path for path in found.values() if not path.is_file()), None)
    if missing is not None:
        raise UserError(
            f"runtime={place}: {missing} is not there; give the folder of the npm package {PACKAGE}"
        )
    return found


def fetch(place: Path) -> None:
    """Fetch the package with npm, which checks its digest, and unpack what is needed of it."""
    npm = shutil.which("npm")
    way = f"install npm, or give the package's folder, runtime={PACKAGE}"
    if npm is None:
        raise UserError(
            f"format=web takes {PACKAGE} {VERSION} from the npm registry, and npm is not there: {way}"
        )
    place.mkdir(parents=True, exist_ok=True)
    command = [npm, "pack", "--silent", f"{PACKAGE}@{VERSION}"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    packed = place / f"{PACKAGE}-{VERSION}.tgz"
    if done.returncode or not packed.is_file():
        said = (done.stderr.strip().splitlines() or ["no file"])[0]
        raise UserError(f"{PACKAGE} {VERSION} cannot be had from the npm registry ({said}): {way}")
    with tempfile.TemporaryDirectory(dir=place) as partial, tarfile.open(packed) as archive:
        members = [archive.getmember(f"package/dist/{file}") for file in FILES.values()]
        archive.extractall(partial, members, filter="data")
        shutil.rmtree(place / "package", ignore_errors=True)
        (Path(partial) / "package").rename(place / "package")
    packed.unlink()
