"""The same as: lmsd sweep."""

from lmsd.cli import main

main("sweep")
