"""The memory that the graphs of one device share, as the allocators of PyTorch and its extensions count its users.

Owns the handle, the count and what a failed capture leaves. An allocator counts the captures that began in a pool and
the graphs that ended, and never takes off a capture that failed: its pool, and with expandable segments a range of
addresses as long as the device's memory, would stay for ever.
"""

from __future__ import annotations

import contextlib
import sys
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
        self._index = index
        self.handle: Handle | None = None
        self.graphs = 0  # that live
        self.bytes = 0  # as far as it grew in captures

    def enter(self) -> None:
        """Before a graph is made in it."""
        self.graphs += 1
        if self.handle is None and self._new is not None:
            self.handle = self._new()

    def leave(self) -> None:
        """The graph is gone, or never came to be. With the last one the memory goes back to the device."""
        self.graphs -= 1
        if self.graphs == 0:
            self.handle, self.bytes = None, 0
            with contextlib.suppress(RuntimeError):  # an earlier task failed: who waits for the device is told
                torch.accelerator.empty_cache()

    def failed(self, graph: Any, *, began: bool) -> None:
        """A capture could not begin, or, where it began, could not end. Its part of the pool is given back; where that
        can't be done, no other graph is to use the pool."""
        if self.handle is None or not self._take_off(self.handle, began):
            self._abandoned.append(graph)
            self.handle = None

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
