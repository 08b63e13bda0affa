"""The same as: lmsd runs."""

from lmsd.cli import main

main("runs")
