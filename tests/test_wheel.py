"""The wheel works without the checkout: help, training, an export, a quick import; and the Dockerfile."""

import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(the wheel, a bare environment's python that sees this one's libraries and the wheel's lmsd)."""
    pytest.importorskip("hatchling", reason="pip install hatchling builds the wheel")
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("lmsd-*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], check=True)
    python = folder / "env" / "bin" / "python"
    site = next((folder / "env" / "lib").glob("python*")) / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # The libraries come after the wheel, so that it is the wheel's lmsd that is found.
    (site / "libraries.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n{libraries()}\n")
    return wheel, python


def libraries() -> str:
    """Where torch lies, which may be another environment's folder than this one's."""
    import torch

    return str(Path(torch.__file__).parents[1])


def run(python: Path, folder: Path, *words: str) -> str:
    done = subprocess.run(
        [str(python), "-P", *words], cwd=folder, capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "LMSD_CACHE": str(folder / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_what_is_in_it(outside: tuple[Path, Path]) -> None:
    names = set(zipfile.ZipFile(outside[0]).namelist())
    read = ("cli/config/lmsd.bash", "cli/config/other_tools.yaml", "export/page.html", "export/sample.py")
    assert {"lmsd/configs/train.yaml", *(f"lmsd/{name}" for name in read)} <= names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]


@pytest.mark.slow
def test_it_works_outside_a_checkout(outside: tuple[Path, Path], tmp_path: Path) -> None:
    python = outside[1]
    place = run(python, tmp_path, "-c", "import lmsd; print(lmsd.__file__)").strip()
    assert Path(place).is_relative_to(python.parents[1]), "the wheel's, not the checkout's"
    assert "digits, in minutes" in run(python, tmp_path, "-m", "lmsd.cli", "--help")
    assert "lmsd demo" in run(python, tmp_path, "-m", "lmsd.cli", "demo", "--help")
    run(python, tmp_path, "-m", "lmsd.cli", "data", "build", "digits", "out=data/digits")
    small = ["images=64", "batch_size=32", "log_every=32", "evaluate.n=0", "optim.ema=[32]", "net.width=16"]
    where = ["run_dir=outputs/first", "accelerator=cpu"]
    run(python, tmp_path, "-m", "lmsd.cli", "train", "experiment=digits", *small, *where)
    run(
        python, tmp_path, "-m", "lmsd.cli", "export", "run=outputs/first", "format=safetensors", "to=exported"
    )
    drawn = "import lmsd; print(lmsd.load('exported').sample(['a handwritten three'], seed=0).shape)"
    assert run(python, tmp_path, "-c", drawn).strip() == "(1, 8, 8, 1)"


@pytest.mark.slow
def test_importing_it_is_quick(outside: tuple[Path, Path], tmp_path: Path) -> None:
    """A tenth of a second at most: the package alone, and nothing of torch."""
    code = "import time; t = time.process_time(); import lmsd; print(time.process_time() - t)"
    assert min(float(run(outside[1], tmp_path, "-c", code)) for _ in range(3)) < 0.1


def test_the_dockerfile_is_short_and_installs_what_there_is() -> None:
    text = (ROOT / "Dockerfile").read_text()
    lines = text.splitlines()
    assert len(lines) <= 30
    steps = re.sub(r"\\\n", " ", "\n".join(line for line in lines if not line.startswith("#"))).splitlines()
    words = {step.split()[0] for step in steps if step.strip()}
    assert words <= {"FROM", "ARG", "ENV", "RUN", "WORKDIR", "COPY", "USER", "VOLUME", "ENTRYPOINT", "CMD"}
    assert steps[0].startswith("FROM python:3.11")
    for step in steps:
        for source in step.split()[1:-1] if step.startswith("COPY") else ():
            assert (ROOT / source).exists(), source
    extras = re.search(r'"\.\[([\w,]+)\]"', text)
    assert extras is not None
    known = (ROOT / "pyproject.toml").read_text()
    assert all(re.search(rf"^{extra} = \[", known, re.M) for extra in extras[1].split(","))
    assert text.index("USER lmsd") < text.index("ENTRYPOINT"), "not as root"
    assert "://" not in text
