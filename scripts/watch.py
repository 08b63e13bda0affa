"""The same as: lmsd watch."""

from lmsd.cli import main

main("watch")
