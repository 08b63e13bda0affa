"""The same as: lmsd train."""

from lmsd.cli import main

main("train")
