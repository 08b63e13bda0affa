"""python -m lmsd.cli: the command line for launchers such as torchrun."""

from lmsd.cli import main

main()
