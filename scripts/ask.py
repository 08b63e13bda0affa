"""The same as: lmsd ask."""

from lmsd.cli import main

main("ask")
