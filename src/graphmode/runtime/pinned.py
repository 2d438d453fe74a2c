"""Graphs of devices that keep the addresses of the capture: inputs are copied in, results are copied out.

Weights, and inputs that are the same memory as in the call before, are read in place; when such an input moves the
graph is captured anew, and weights at other addresses have a graph of their own. The runner decides when to capture
and what to drop; this owns the copies.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from graphmode.devices.adapter import Device, DeviceGraph
from graphmode.runtime.slots import Slots


@dataclass
class Pinned:
    """One graph."""

    graph: DeviceGraph
    slots: Slots
    results: list[tuple[int, Any]]  # per result its index among the tensors, or -1 and a constant
    replays: int = 0


class PinnedGraphs:
    """The graphs of one region, the least recently used first.

    A signature may have several: models of one architecture share a region, and each has weights of its own.
    """

    def __init__(self, written: Collection[int], device: Device) -> None:
        self.table: dict[tuple[Hashable, tuple[int, ...]], Pinned] = {}  # by signature and the weights' addresses
        self._written = written
        self._device = device
        self._fresh = device.capabilities.fresh_outputs
        self._before: dict[int, StorageWeakRef] = {}  # memory of the inputs of the last live call
        self._travels: set[int] = set()  # inputs that were elsewhere at a later call

    def seen(self, args: Sequence[Any]) -> None:
        """Notes the memory that a live call's inputs are in."""
        self._before = {i: _memory(a) for i, a in enumerate(args) if isinstance(a, torch.Tensor)}

    def find(self, signature: Hashable, args: Sequence[Any]) -> Pinned | None:
        """The graph for a call; None where there is none, or where `drop_moved` finds that it is stale."""
        key = (signature, _weights(args))
        pinned = self.table.get(key)
        if pinned is None or pinned.slots.moved(args):
            return None
        self.table[key] = self.table.pop(key)
        return pinned

    def serves(self, signature: Hashable) -> bool:
        """Whether there is a graph for a signature, whatever the weights."""
        return any(known == signature for known, _ in self.table)

    def drop_moved(self, signature: Hashable, args: Sequence[Any]) -> DeviceGraph | None:
        """Gives up a graph that reads inputs in place which have moved; they are copied from then on."""
        pinned = self.table.pop((signature, _weights(args)), None)
        if pinned is None:
            return None
        self._travels.update(pinned.slots.moved(args))
        return pinned.graph

    def keep(self, signature: Hashable, pinned: Pinned, args: Sequence[Any]) -> None:
        """Enters the graph that a call was captured as."""
        self.table[signature, _weights(args)] = pinned
        pinned.slots.let_go()

    def slots(self, args: Sequence[Any]) -> Slots:
        """Addresses to capture on."""
        tensors = {i: a for i, a in enumerate(args) if isinstance(a, torch.Tensor)}
        stays = {i for i, a in tensors.items() if isinstance(a, torch.nn.Parameter) or self._is_where_it_was(i, a)}
        return Slots(args, (tensors.keys() - stays) | self._travels)

    def _is_where_it_was(self, position: int, tensor: torch.Tensor) -> bool:
        # The same memory, and not other memory at the same address, which is where allocators put the next tensor.
        before = self._before.get(position)
        return before is not None and not before.expired() and before == _memory(tensor)  # type: ignore[no-untyped-call]

    def replay(self, pinned: Pinned, args: Sequence[Any]) -> tuple[Any, ...]:
        """Runs a graph on a call's values."""
        pinned.replays += 1
        with self._device.in_turn():
            pinned.slots.fill(args)
            tensors = pinned.graph.replay([])
            results = [constant if index < 0 else tensors[index] for index, constant in pinned.results]
            return self.hand_out(pinned.slots, results, args)

    def hand_out(self, slots: Slots, results: Sequence[Any], args: Sequence[Any]) -> tuple[Any, ...]:
        """Gives back what was written, and makes the results the caller's."""
        slots.give_back(args, self._written)
        written = [args[i] for i in self._written if isinstance(args[i], torch.Tensor)]
        changed = [t for t in written if not t.is_inference()]
        torch.autograd.graph.increment_version(changed)  # saves for a backward pass notice
        return slots.hand_out(results, args, fresh=self._fresh)


def _weights(args: Sequence[Any]) -> tuple[int, ...]:
    return tuple(a.data_ptr() for a in args if isinstance(a, torch.nn.Parameter))


def _memory(tensor: torch.Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
