"""The same as: lmsd verify-resume."""

from lmsd.cli import main

main("verify-resume")
