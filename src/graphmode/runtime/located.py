"""Runs a program node by node while it is captured, so that each call, and the first refusal, has the user's line."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

import torch
import torch.fx as fx

from graphmode.devices.adapter import DeviceGraph
from graphmode.program.lines import line_of
from graphmode.runtime.resume import Resume, calls


class Located(fx.Interpreter):
    """Knows the node that runs now, and the one whose calls the device refused first."""

    def __init__(self, gm: fx.GraphModule, graph: DeviceGraph, updated: Collection[fx.Node] = ()) -> None:
        """`updated`: calls that later replays change."""
        super().__init__(gm)
        self.node: fx.Node | None = None
        self.culprit: fx.Node | None = None
        self.resume = Resume(gm)
        self._graph = graph
        self._updated = updated

    def run_node(self, n: fx.Node) -> Any:
        self.node = n
        self._graph.at(self.resume.position(n), calls(n))
        result = super().run_node(n)
        self.resume.made(n, result, self._graph.find)
        if self.culprit is None and n.op == "call_function" and self._graph.refusal():
            self.culprit = n
        return result

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if self.node in self._updated:
            return self._graph.capture_updatable(target, args, kwargs)
        return super().call_function(target, args, kwargs)

    def blame(self) -> None:
        """Says that the running node is the one that the device refused."""
        if self.node is not None and self.node.op == "call_function":
            self.culprit = self.culprit or self.node

    def line(self) -> str:
        """The user's line of the running node."""
        return line_of(self.node) if self.node is not None else ""


@contextlib.contextmanager
def uncached_autocast() -> Iterator[None]:
    """Turns autocast's cache off: a weight converted earlier would be a constant, stale after an update."""
    torch.clear_autocast_cache()
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(cached)
