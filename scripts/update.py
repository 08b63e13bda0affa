"""The same as: lmsd update."""

from lmsd.cli import main

main("update")
