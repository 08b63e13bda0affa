"""The same as: lmsd sample."""

from lmsd.cli import main

main("sample")
