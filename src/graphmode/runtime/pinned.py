"""Graphs of devices that keep the addresses of the capture: inputs are copied in, results are copied out.

Weights, and inputs that lay at the same address in the call before, are read in place; when one of them moves the
graph is captured anew. The runner decides when to capture and what to drop; this owns the copies.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from graphmode.devices.adapter import Capabilities, DeviceGraph
from graphmode.runtime.slots import Slots


@dataclass
class Pinned:
    """One graph."""

    graph: DeviceGraph
    slots: Slots
    results: list[tuple[int, Any]]  # per result its index among the tensors, or -1 and a constant
    replays: int = 0


class PinnedGraphs:
    """The graphs of one region, the least recently used first."""

    def __init__(self, written: Collection[int], capabilities: Capabilities) -> None:
        self.table: dict[Hashable, Pinned] = {}
        self._written = written
        self._fresh = capabilities.fresh_outputs
        self._homes: dict[int, int] = {}
        self._travels: set[int] = set()  # inputs that were elsewhere at a later call

    def seen(self, args: Sequence[Any]) -> None:
        """Notes where the inputs of a live call lie."""
        self._homes = {i: a.data_ptr() for i, a in enumerate(args) if isinstance(a, torch.Tensor)}

    def find(self, key: Hashable, args: Sequence[Any]) -> Pinned | None:
        """The graph for a call; None where there is none, or where `moved` says that it is stale."""
        pinned = self.table.get(key)
        if pinned is None or pinned.slots.moved(args):
            return None
        self.table[key] = self.table.pop(key)
        return pinned

    def drop_moved(self, key: Hashable, args: Sequence[Any]) -> DeviceGraph | None:
        """Gives up a graph that reads inputs in place which have moved; they are copied from then on, weights not."""
        if key not in self.table:
            return None
        pinned = self.table.pop(key)
        self._travels |= {i for i in pinned.slots.moved(args) if not isinstance(args[i], torch.nn.Parameter)}
        return pinned.graph

    def slots(self, args: Sequence[Any]) -> Slots:
        """Addresses to capture on."""
        here = {i: a.data_ptr() for i, a in enumerate(args) if isinstance(a, torch.Tensor)}
        stays = {i for i, at in here.items() if isinstance(args[i], torch.nn.Parameter) or self._homes.get(i) == at}
        return Slots(args, (here.keys() - stays) | self._travels)

    def replay(self, pinned: Pinned, args: Sequence[Any]) -> tuple[Any, ...]:
        """Runs a graph on a call's values."""
        pinned.slots.fill(args)
        pinned.replays += 1
        tensors = pinned.graph.replay([a for a in pinned.slots.args if isinstance(a, torch.Tensor)])
        results = [constant if index < 0 else tensors[index] for index, constant in pinned.results]
        return self.hand_out(pinned.slots, results, args)

    def hand_out(self, slots: Slots, results: Sequence[Any], args: Sequence[Any]) -> tuple[Any, ...]:
        """Gives back what was written, and makes the results the caller's."""
        slots.give_back(args, self._written)
        changed = [args[i] for i in self._written if not args[i].is_inference()]
        torch.autograd.graph.increment_version(changed)  # saves for a backward pass notice
        return slots.hand_out(results, args, fresh=self._fresh)
