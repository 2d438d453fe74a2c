"""`python -m graphmode`."""

from graphmode.cli import main

main()
