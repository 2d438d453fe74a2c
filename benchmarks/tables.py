"""The console that benchmarks print to.

Wide when the output is a file or a pipe, where a narrow table would be cut for nothing.
"""

import sys

from rich.console import Console

WIDTH_OF_A_FILE = 150


def console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=WIDTH_OF_A_FILE)
