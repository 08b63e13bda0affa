"""The same as: lmsd plan."""

from lmsd.cli import main

main("plan")
