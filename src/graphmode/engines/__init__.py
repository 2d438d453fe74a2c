"""Other compilers in the place of graphmode's own: the option `engine`. One file each, imported when it is asked for.

What they compile is called as it is, and counted: no graph of graphmode's holds it.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch.fx as fx

from graphmode.devices.adapter import DeviceGraph, GraphBytes
from graphmode.inspect.counters import Counters, Replays, ledger
from graphmode.options import Options

_numbers = itertools.count()


class EngineCall:
    """What an engine compiled. Each call is a live call, with the reason."""

    def __init__(self, compiled: Callable[..., Any], why_outside: str) -> None:
        self.number = next(_numbers)
        self.counters = Counters()
        self.replayed = Replays()
        self.graphs: dict[int, DeviceGraph] = {}
        self.breaks: list[tuple[str, str, str]] = []
        self.stretches: list[EngineCall] = []
        self.on_death: weakref.finalize[..., Any] | None = None
        self._compiled = compiled
        self._why_outside = why_outside
        ledger.enter(self)

    def __call__(self, *args: Any) -> Any:
        self.counters.fall_back(self._why_outside)
        self.counters.live_calls += 1
        return self._compiled(*args)

    def bytes(self) -> list[GraphBytes]:
        """Of no graph."""
        return []

    def count(self) -> Counters:
        """What was called so far."""
        total = Counters()
        total.add(self.counters)
        return total

    def clear(self) -> None:
        """There are no graphs to drop."""


def compile_by_engine(gm: fx.GraphModule, example_inputs: Sequence[Any], options: Options, device: str) -> EngineCall:
    """Has the engine of the options compile one of Dynamo's graphs, for a device type.

    Raises:
        EngineError: something it needs is missing.
    """
    engine = import_module(f"graphmode.engines.{options.engine}")
    return EngineCall(engine.compile_graph(gm, example_inputs, options, device), engine.WHY_OUTSIDE)
