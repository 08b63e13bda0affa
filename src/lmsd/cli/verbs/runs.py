"""`lmsd runs`: the runs in outputs/, with their state, how far they are and their best score."""

from pathlib import Path

from lmsd.cli.runs import store
from lmsd.errors import UserError

HELP = """lmsd runs [WORD]      the runs in outputs/, oldest first; WORD: only those with it in their name
"""


def main(arguments: list[str]) -> int:
    """List the runs with their state, how far they are, and the best score on val."""
    found = [path for path in store.by_age("*") if all(word in path.name for word in arguments)]
    if not found:
        raise UserError(
            f"no runs in {store.OUTPUTS}/{' with ' + ' '.join(arguments) if arguments else ' yet'}"
        )
    rows = [("run", "state", "images", "best on val")]
    rows += [(path.name, store.state(path), progress(path), best(path)) for path in found]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    print(
        "\n".join(
            "  ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
        )
    )
    return 0


def progress(folder: Path) -> str:
    """Images seen, of all."""
    try:
        total = f"{store.config_of(folder).get('images', 0):,}"
    except UserError:
        total = "?"
    lines, status = store.scored(folder, '"images"'), store.status(folder)
    logged = lines[-1]["images"] if lines else 0
    # the line of metrics is older than the checkpoint of a run that was stopped between two of them
    seen = logged if status.get("state") == "running" else status.get("images", logged)
    return f"{seen:,} of {total}"


def best(folder: Path) -> str:
    """The lowest Fréchet distance on val with its interval, and when it was reached."""
    found = [
        (value, line["images"], name, line)
        for line in store.scored(folder, '"val/fd[')
        for name, value in line.items()
        if name.startswith("val/fd[") and name.endswith("]") and value is not None
    ]
    if not found:
        return "-"
    value, images, name, line = min(found, key=lambda row: row[:2])
    low, high = (line.get(f"{name}/{end}") for end in ("low", "high"))
    interval = "" if low is None or high is None else f" [{low:.4g}, {high:.4g}]"
    return f"{name.removeprefix('val/')} {value:.4g}{interval} at {images:,}"
