"""Where Dynamo itself left the graph: it splits a model at what it can't trace and runs that part in Python.

Read from Dynamo's own counters; owns only the baseline of the last reset.
"""

from __future__ import annotations

from torch._dynamo.utils import counters

from graphmode.inspect.counters import Fallback

_before: dict[str, int] = {}


def dynamo_breaks() -> list[Fallback]:
    """One entry per kind of split since the last reset; the count is of splits traced, not of calls."""
    found = []
    for text, count in _splits().items():
        new = count - _before.get(text, 0)
        if new > 0:
            first = next((line.strip() for line in text.splitlines() if line.strip()), text)
            found.append(Fallback(f"Dynamo split the model: {first}", None, None, new))
    return found


def forget_dynamo_breaks() -> None:
    """Starts counting anew."""
    _before.clear()
    _before.update(_splits())


def _splits() -> dict[str, int]:
    # Breaks that a call forces are counted under one name, those that control flow forces under the other.
    return {**counters["unimplemented"], **counters["graph_break"]}
