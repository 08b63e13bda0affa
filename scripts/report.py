"""The same as: lmsd report."""

from lmsd.cli import main

main("report")
