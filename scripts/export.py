"""The same as: lmsd export."""

from lmsd.cli import main

main("export")
