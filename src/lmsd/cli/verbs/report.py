"""`lmsd report`: write a run's report.html again, or compare several runs."""

from pathlib import Path

from lmsd.checkpoints import find_run
from lmsd.cli.runs import store
from lmsd.cli.runs.written import check_out
from lmsd.errors import UserError

HELP = """lmsd report RUN           write its report.html again; RUN: last, an id or a folder
lmsd report A B C         compare A with each of the others: which scores differ, and with what p-value;
                          the newest records of equal settings are compared

  out=FILE.html             of a comparison; default: comparison.html in the folder of the first run
"""


def main(arguments: list[str]) -> int:
    """Write the report, or the comparison, and print its path."""
    out = [word.removeprefix("out=") for word in arguments if word.startswith("out=")]
    names = [word.removeprefix("run=") for word in arguments if not word.startswith("out=")]
    for name in names:
        if "=" in name and not Path(name).exists():
            raise UserError(f"lmsd report has no option {name.partition('=')[0]}=; its one option is out=")
    folders = [store.folder_of(find_run(name)) for name in names]
    if not folders or (out and len(folders) < 2):
        raise UserError("out= is the page of a comparison: lmsd report A B out=FILE.html")
    if out:
        check_out(Path(out[-1]), ".html")
    if len(folders) == 1:
        print(write(folders[0]))
        return 0
    from lmsd.evaluation.compare import labels

    labels(folders)
    print(*map(write, folders), sep="\n")
    print(compare(folders, Path(out[-1]) if out else folders[0] / "comparison.html"))
    return 0


def write(folder: Path) -> Path:
    """Write a run's report.html, with what sets it apart from its experiment; its path."""
    from lmsd.evaluation.report import write_report

    experiment, differences = departures(folder)
    return write_report(folder, experiment=experiment, differences=differences)


def departures(folder: Path) -> tuple[str | None, dict[str, list[object]]]:
    """The experiment that a run began from, and the options it has otherwise: [the experiment's, the run's].

    (None, {}) if either configuration can no longer be read.
    """
    from lmsd.cli.config.compose import flatten, load
    from lmsd.cli.runs.secrets import stored
    from lmsd.evaluation.compare import changed

    given = folder / "overrides.txt"
    words = given.read_text().splitlines() if given.is_file() else []
    chosen = [word for word in words if word.lstrip("+").startswith("experiment=")]
    try:
        before, here = stored(load(chosen)), store.config_of(folder)
    except UserError:
        return None, {}
    name = chosen[-1].partition("=")[2] if chosen else "the defaults"
    return name, changed({"before": flatten(before), "here": flatten(here)})


def compare(folders: list[Path], path: Path) -> str:
    """Compare runs by their newest records of equal settings; the words and the page's path."""
    from lmsd.cli.config.compose import flatten
    from lmsd.evaluation.compare import changed, write_comparison

    differences = changed({str(folder): flatten(store.config_of(folder)) for folder in folders})
    page, words = write_comparison(folders, path, differences=differences)
    return f"{words}\nComparison: {page}"
