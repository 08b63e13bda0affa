"""The same as: lmsd promote."""

from lmsd.cli import main

main("promote")
