"""The same as: lmsd merge."""

from lmsd.cli import main

main("merge")
