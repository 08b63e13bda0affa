"""The same as: lmsd data."""

from lmsd.cli import main

main("data")
