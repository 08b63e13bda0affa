"""`lmsd report`: write a run's report.html again."""

from lmsd.cli import runs

HELP = """lmsd report RUN      RUN: last, an id or a folder
"""


def main(arguments: list[str]) -> int:
    """Write the report and print its path."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0 if arguments else 2
    from lmsd.evaluation.report import write_report

    for name in arguments:
        print(write_report(runs.find(name.removeprefix("run="))))
    return 0
