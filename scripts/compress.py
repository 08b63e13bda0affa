"""The same as: lmsd compress."""

from lmsd.cli import main

main("compress")
