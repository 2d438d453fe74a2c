"""What the sweep asks of a backend beside compiling: to start from zero, and to say what it did."""

from collections.abc import Callable
from typing import Any


def counters(backend: str) -> Callable[[], Any] | None:
    """A reader of the backend's counters, which it sets to zero first; None for a backend that keeps none."""
    if backend != "graphmode":
        return None
    import graphmode

    graphmode.reset()
    return graphmode.report
