"""The same as: lmsd evaluate."""

from lmsd.cli import main

main("evaluate")
