"""The launch of a graph whose replays are told integers: the captured calls get them first, unless they have them.

Owns what is known of the integers that the calls have. Where that is nothing, a launch updates: never is one skipped on
a guess. Called in the device's turn, so by one thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from graphmode.devices.adapter import DeviceGraph
from graphmode.errors import CaptureError, first_line
from graphmode.inspect.counters import Counters
from graphmode.program.updates import Lists


class Updating:
    """Launches one graph. Called with the integers, which come before the graph's own work or not at all."""

    def __init__(self, graph: DeviceGraph, lists: Callable[..., Sequence[Lists]], counters: Counters) -> None:
        """`lists`: what the captured calls' arguments are, as a function of the integers."""
        self.failed: Callable[[], None] = lambda: None  # told that the graph is of no more use
        self._graph = graph
        self._lists = lists
        self._counters = counters
        self._has: tuple[Hashable, ...] | None = None  # None: nobody knows

    def prove(self, told: tuple[Hashable, ...]) -> None:
        """After the capture, and before anyone relies on it: updates the calls to what they were captured with.

        Raises:
            CaptureError: this device, or its driver, can't update them.
        """
        try:
            self._update(told)
        except Exception as error:  # whatever a device raises
            raise CaptureError(f"the device can't update captured calls: {first_line(error)}") from error

    def __call__(self, *told: Hashable) -> None:
        """Replays. What an update raises, the op's own as in eager, comes before the launch, and drops the graph."""
        if told != self._has:
            try:
                self._update(told)
            except Exception as error:  # the op's own, as in eager for such integers, or the device's
                self.failed()
                error.add_note(
                    f"graphmode: a graph could not be given the lengths {list(told)} of this call. Nothing of it has "
                    "run, and the graph is dropped"
                )
                raise
            self._counters.updates += 1
        self._graph.replay([])

    def _update(self, told: tuple[Hashable, ...]) -> None:
        self._has = None  # until all calls have them
        self._graph.update(self._lists(*told))
        self._has = told
