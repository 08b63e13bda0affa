"""The same as: lmsd serve."""

from lmsd.cli import main

main("serve")
