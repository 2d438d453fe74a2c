"""What a device must offer to be graphed. Policy (when to capture, what to keep) never lives in an adapter."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any

import torch

from graphmode import _C
from graphmode.errors import UnsupportedError
from graphmode.fusion.fuse import Table
from graphmode.program.updates import Lists, Updatable


@dataclass(frozen=True)
class Capabilities:
    """What the runner may rely on."""

    capture_executes: bool  # the captured calls ran: their results are the results of that call
    rebind_inputs: bool  # a replay may take inputs at other addresses; otherwise they are copied to fixed ones
    fresh_outputs: bool  # each replay hands out memory of its own
    keeps_memory: bool = False  # what a capture allocated stays the graph's, whoever lets go of it
    max_graphs: int | None = None  # how many the device holds per compiled region
    updates: Updatable = field(default_factory=dict)  # what a graph can be given anew: see `DeviceGraph.update`


@dataclass(frozen=True)
class GraphBytes:
    """Memory of one graph, in bytes; known before anything is allocated for it."""

    arena: int
    outputs: int
    fixed: int


class DeviceGraph(abc.ABC):
    """One captured graph. The names are those of `torch.accelerator.Graph`."""

    def overwritten(self) -> None:
        """Before capture_begin: who captures sees to it that nobody reads its results after another graph's replay."""
        return

    @abc.abstractmethod
    def capture_begin(
        self,
        inputs: Sequence[torch.Tensor | None],
        locate: Callable[[], str],
        constants: Sequence[torch.Tensor] | None,
    ) -> None:
        """Starts capturing this thread's calls.

        inputs: one entry per argument of the program, None where it is no tensor.
        locate: gives the user's line of the running call.
        constants: the only other tensors the work may use; None allows any, at the address they have.
        """

    @abc.abstractmethod
    def capture_end(self, outputs: Sequence[torch.Tensor] | None) -> None:
        """Ends the capture. `outputs`: the results, or None when all memory still held keeps its address.

        Raises:
            CaptureError: when the work can't be a graph.
        """

    def fuse(self, most: int) -> None:
        """Before capture_end: how many runs of calls the device may turn into one kernel each."""
        return

    def refusal(self) -> bool:
        """Whether the capture under way met something that can't be captured."""
        return False

    def register_generator(self, generator: torch.Generator) -> None:
        """Before the capture: a generator that the work may draw from, besides the default one."""
        return

    def at(self, position: int, op: str) -> None:
        """Before each node of the program while it is captured: its number, and the op it calls."""
        return

    def find(self, tensor: torch.Tensor) -> tuple[str, int] | None:
        """Where a tensor of the program lies while it is captured, for a device that can go on live half-way."""
        return None

    def go_on_with(self, needs: Callable[[int], tuple[list[int], list[int]]]) -> None:
        """Before capture_end: who knows which values the rest of the program needs after a node."""
        return

    def hand_on(self, positions: Sequence[int]) -> None:
        """Before capture_begin, where inputs can be re-bound: those that custom ops take as each call gives them."""
        return

    def capture_updatable(
        self, op: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Any, ...]:
        """Captures a call of an op in `Capabilities.updates`, so that `update` can change it; returns its results."""
        raise UnsupportedError(f"{type(self).__name__} has no update of captured calls")

    def update(self, lists: Sequence[Lists]) -> None:
        """Before a replay: gives the calls that `capture_updatable` captured, in their order, other lists of integers.

        Replays that were begun keep what they had. Where it raises, nobody knows what the calls have.
        """
        raise UnsupportedError(f"{type(self).__name__} has no update of captured calls")

    @abc.abstractmethod
    def bytes(self) -> GraphBytes:
        """Memory the graph needs, after capture_end."""

    @abc.abstractmethod
    def draws_random_numbers(self) -> bool:
        """Whether a replay draws from torch's generators, after capture_end."""

    @abc.abstractmethod
    def instantiate(self, *, poison: bool) -> None:
        """Makes the graph ready to replay."""

    @abc.abstractmethod
    def replay(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Runs the graph on these inputs, none where the device can't re-bind them, and returns the outputs.

        None are returned where they are the capture's own tensors.
        """

    @abc.abstractmethod
    def reset(self) -> None:
        """Gives the graph's memory back."""

    @abc.abstractmethod
    def debug_dump(self) -> str:
        """The graph as text, top to bottom."""


class Device(abc.ABC):
    """One kind of device."""

    name: str
    capabilities: Capabilities
    turn: _C.Turn | None = None  # where graphs share memory: who may use it
    capturing_thread: int | None = None  # that has a capture of ours open
    freed = 0  # graphs that are gone: what was refused for want of room is tried again after one

    @abc.abstractmethod
    def graph(self) -> DeviceGraph:
        """A new, empty graph."""

    def fusions(self) -> Table:
        """The fused calls that it has, by the names of `fusion/patterns.py`: for those who accept other kernels."""
        return {}

    @abc.abstractmethod
    def takes(self, tensor: torch.Tensor) -> bool:
        """Whether a graph can have a tensor as input: this device's, plain and strided."""

    @contextlib.contextmanager
    def in_turn(self, args: Sequence[Any]) -> Iterator[None]:
        """Around a capture for these arguments: captures and replays follow one another where graphs share memory."""
        if self.turn is None:
            yield
            return
        index = next((a.device.index for a in args if isinstance(a, torch.Tensor) and a.device.type == self.name), -1)
        self.turn.take(index)
        try:
            yield
        finally:
            self.turn.leave()

    @abc.abstractmethod
    def is_capturing(self) -> bool:
        """Whether this thread is inside a capture."""

    @abc.abstractmethod
    def pool_bytes(self) -> int:
        """Bytes held now for intermediates of all graphs."""


_found: dict[str, Device] = {}


def installed() -> str:
    """The device types that have an adapter, for messages."""
    return ", ".join(sorted({e.name for e in entry_points(group="graphmode.devices")}))


def has_adapter(name: str) -> bool:
    """Whether an adapter is installed for a device type."""
    return name in _found or any(e.name == name for e in entry_points(group="graphmode.devices"))


def pool_bytes() -> int:
    """Bytes that graphs of all devices hold now for their intermediates."""
    return sum(device.pool_bytes() for device in _found.values())


def device_named(name: str) -> Device:
    """The adapter registered under `graphmode.devices` for a device type.

    Raises:
        UnsupportedError: no adapter is installed for it.
    """
    if name not in _found:
        registered: dict[str, Any] = {e.name: e for e in entry_points(group="graphmode.devices")}
        if name not in registered:
            raise UnsupportedError(
                f"no graph adapter for device {name!r}; installed: {installed()}. "
                "An adapter is one file and an entry point in the group graphmode.devices"
            )
        _found[name] = registered[name].load()()
    return _found[name]
