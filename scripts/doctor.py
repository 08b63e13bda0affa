"""The same as: lmsd doctor."""

from lmsd.cli import main

main("doctor")
