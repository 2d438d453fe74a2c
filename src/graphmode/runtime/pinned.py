"""Graphs of devices that keep the addresses of the capture: inputs are copied in, results are copied out.

Weights, and inputs that are the same memory as in the call before, are read in place; when such an input moves the
graph is captured anew, and weights at other addresses have a graph of their own. The runner decides when to capture
and what to drop; this owns the copies.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from graphmode import _C
from graphmode.devices.adapter import Device
from graphmode.runtime.slots import Slots


@dataclass
class Pinned:
    """One graph."""

    number: int  # the runner's
    homes: dict[int, int]  # addresses of the inputs that it reads in place, by position

    def moved(self, args: Sequence[Any]) -> list[int]:
        """Positions of inputs that it reads in place and that lie elsewhere now."""
        return [i for i, home in self.homes.items() if args[i].data_ptr() != home]


class PinnedGraphs:
    """The graphs of one region, which its runner replays.

    A signature may have several: models of one architecture share a region, and each has weights of its own.
    """

    def __init__(
        self, written: Collection[int], device: Device, constants: Sequence[torch.Tensor], placed: bool
    ) -> None:
        """`placed`: the program looks at where its inputs lie in their storages."""
        self.placed = placed
        self.table: dict[tuple[Hashable, tuple[int, ...]], Pinned] = {}  # by signature and the weights' addresses
        self._written = sorted(written)
        self._device = device
        self._constants = constants
        self._before: dict[int, StorageWeakRef] = {}  # memory of the inputs of the last live call
        self._travels: set[int] = set()  # inputs that were elsewhere at a later call

    def seen(self, args: Sequence[Any]) -> None:
        """Notes the memory that a live call's inputs are in."""
        self._before = {i: _memory(a) for i, a in enumerate(args) if isinstance(a, torch.Tensor)}

    def find(self, signature: Hashable, args: Sequence[Any]) -> Pinned | None:
        """The graph for a call; None where there is none, or where `drop_moved` finds that it is stale."""
        pinned = self.table.get((signature, _weights(args)))
        return None if pinned is None or pinned.moved(args) else pinned

    def serves(self, signature: Hashable) -> bool:
        """Whether there is a graph for a signature, whatever the weights."""
        return any(known == signature for known, _ in self.table)

    def drop_moved(self, signature: Hashable, args: Sequence[Any]) -> int | None:
        """Gives up a graph that reads inputs in place which have moved; they are copied from then on."""
        pinned = self.table.pop((signature, _weights(args)), None)
        if pinned is None:
            return None
        self._travels.update(pinned.moved(args))
        return pinned.number

    def keep(self, signature: Hashable, number: int, slots: Slots, args: Sequence[Any]) -> None:
        """Enters the graph that a call was captured as."""
        self.table[signature, _weights(args)] = Pinned(number, slots.homes)

    def keep_only(self, numbers: Collection[int]) -> None:
        """Forgets the graphs that the runner has no more."""
        self.table = {key: pinned for key, pinned in self.table.items() if pinned.number in numbers}

    def slots(self, args: Sequence[Any]) -> Slots:
        """Addresses to capture on. During the capture where the device keeps what is allocated then."""
        tensors = {i: a for i, a in enumerate(args) if isinstance(a, torch.Tensor)}
        stays = {i for i, a in tensors.items() if isinstance(a, torch.nn.Parameter) or self._is_where_it_was(i, a)}
        copied = (tensors.keys() - stays) | self._travels
        filled = self._device.capabilities.capture_executes
        return Slots(args, copied, filled=filled, whole=self.placed)

    def graph(
        self,
        launch: Callable[..., object],
        slots: Slots,
        results: Sequence[torch.Tensor],
        poison: bool,
        told: Sequence[int] = (),
    ) -> _C.PinnedGraph:
        """What copies, launches and copies. Afterwards the capture's memory is the device's, where it keeps it.

        Args:
            launch: replays the graph; called with the integers of a call that are at the positions `told`.
            slots: what the capture had as arguments.
            results: the capture's.
            poison: the option of that name.
            told: positions of integers that select no graph.
        """
        capabilities = self._device.capabilities
        made = _C.PinnedGraph(
            launch,
            self._device.is_capturing,
            self._device.turn,
            tensors_of(slots.args),
            slots.spans,
            self._written,
            told,
            results,
            self._constants,
            self.placed,
            capabilities.fresh_outputs,
            poison,
        )
        if capabilities.keeps_memory:
            made.disown()
        return made

    def _is_where_it_was(self, position: int, tensor: torch.Tensor) -> bool:
        # The same memory, and not other memory at the same address, which is where allocators put the next tensor.
        before = self._before.get(position)
        return before is not None and not before.expired() and before == _memory(tensor)  # type: ignore[no-untyped-call]


def tensors_of(args: Sequence[Any]) -> list[torch.Tensor | None]:
    """The arguments, None for those that are no tensors."""
    return [a if isinstance(a, torch.Tensor) else None for a in args]


def _weights(args: Sequence[Any]) -> tuple[int, ...]:
    return tuple(a.data_ptr() for a in args if isinstance(a, torch.nn.Parameter))


def _memory(tensor: torch.Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
