"""Checks at import that this Python and torch are those the native part was built for."""

from __future__ import annotations

import sys

import torch

from graphmode.errors import UnsupportedError

TORCH = "2.13"


def check() -> None:
    """Raises UnsupportedError with what is wrong and what to install."""
    if sys.version_info < (3, 11):
        raise UnsupportedError(f"graphmode needs Python 3.11 or newer; this is {sys.version.split()[0]}")
    if not torch.__version__.startswith(TORCH + "."):
        raise UnsupportedError(
            f"graphmode's native part is built for torch {TORCH}.*; this is torch {torch.__version__}. "
            f"Install torch=={TORCH}.* or a graphmode built for your torch"
        )


check()
