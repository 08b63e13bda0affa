"""The same as: lmsd launch."""

from lmsd.cli import main

main("launch")
