"""Checks at import that this torch is the one the native part was built for."""

from __future__ import annotations

import torch

from graphmode.errors import UnsupportedError

TORCH = "2.13"


def check() -> None:
    """Raises UnsupportedError with what is wrong and what to install."""
    if not torch.__version__.startswith(TORCH + "."):
        raise UnsupportedError(
            f"graphmode's native part is built for torch {TORCH}.*; this is torch {torch.__version__}. "
            f"Install torch=={TORCH}.* or a graphmode built for your torch"
        )


check()
