"""The memory that the graphs of one device share, as the allocators of PyTorch and its extensions count its users.

Owns the handle, the count and what a failed capture leaves. An allocator counts the captures that began in a pool and
the graphs that ended, and never takes off a capture that failed: its pool, and with expandable segments a range of
addresses as long as the device's memory, would stay for ever.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

Handle = tuple[int, int]


class Pool:
    """That of one device.

    Args:
        kind: the device's, as in `torch.device`
        index: the device's
    """

    def __init__(self, kind: str, index: int) -> None:
        # torch.accelerator has no calls for pools: one whose extension has none by these names gives nothing back.
        calls: Any = getattr(sys.modules.get(f"torch_{kind}", torch), "_C", None)
        self._new: Callable[[], Handle] | None = getattr(torch.get_device_module(kind), "graph_pool_handle", None)
        self._stop: Callable[[int, Handle], None] | None = getattr(calls, f"_{kind}_endAllocateToPool", None)
        self._release: Callable[[int, Handle], None] | None = getattr(calls, f"_{kind}_releasePool", None)
        self._abandoned: list[Any] = []  # graphs that the allocator still knows
        self._users: Counter[Handle | None] = Counter()  # graphs that live, by the handle they were made with
        self._index = index
        self.handle: Handle | None = None  # for the next graph
        self.bytes = 0  # as far as it grew in captures

    def enter(self) -> Handle | None:
        """The handle that a graph is to be made with; None leaves it to the graph to make one."""
        if self.handle is None and self._new is not None:
            self.handle = self._new()
        self._users[self.handle] += 1
        return self.handle

    def captured(self, entered: Handle | None, handle: Handle) -> None:
        """The graph that entered so has its memory there."""
        self._users[handle] += 1
        self._take(entered)
        self.handle = handle

    def leave(self, handle: Handle | None) -> None:
        """The graph is gone, or never came to be. With the last one the memory goes back to the device."""
        self._take(handle)
        if not self._users:
            self.bytes = 0
            with contextlib.suppress(RuntimeError):  # an earlier task failed: who waits for the device is told
                torch.accelerator.empty_cache()

    def failed(self, graph: Any, handle: Handle | None, *, began: bool) -> None:
        """A capture could not begin, or, where it began, could not end. Its part of the pool is given back; where that
        can't be done, no other graph is to use the pool."""
        if began and _ended(graph):
            return  # what came after the capture failed: the graph gives back what it has
        if handle is None or not self._take_off(handle, began):
            self._abandoned.append(graph)
            self.handle = None

    def _take(self, handle: Handle | None) -> None:
        self._users[handle] -= 1
        if self._users[handle] <= 0:
            del self._users[handle]
            if handle == self.handle:
                self.handle = None  # allocators take no pool again that had no user

    def _take_off(self, handle: Handle, began: bool) -> bool:
        if self._stop is None or self._release is None:
            return False
        try:
            self._stop(self._index, handle)
        except RuntimeError:  # nothing is allocated there: that had ended before the capture did, or had never begun
            if not began:
                return True
        try:
            self._release(self._index, handle)
        except RuntimeError:
            return False
        return True


def _ended(graph: Any) -> bool:
    """Whether a graph counts its capture as made: it has a pool by then, and raises before."""
    try:
        graph.pool()
    except RuntimeError:
        return False
    return True
