"""The same as: lmsd edit."""

from lmsd.cli import main

main("edit")
