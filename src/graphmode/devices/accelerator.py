"""Graphs of accelerators, by `torch.accelerator.Graph`: Ascend NPUs and Intel's XPUs, with no code of their own.

All graphs of a device share one pool of memory: what one graph keeps for itself is given to the next, since replays
follow one another. So inputs are copied in before a replay and results are copied out after it.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from graphmode.devices.adapter import Capabilities, Device, DeviceGraph, GraphBytes
from graphmode.errors import CaptureError, StateError, UnsupportedError

_NO_GRAPH_LEFT = ("207008", "alloc sq cq fail", "stream resource")  # Ascend's: streams and graphs share a budget
_NOT_PLAIN = tuple(  # tensors of these dispatch to something else before the device
    getattr(torch._C.DispatchKey, name)
    for name in ("Python", "FuncTorchBatched", "FuncTorchGradWrapper", "Functionalize", "ZeroTensor")
)


class AcceleratorGraph(DeviceGraph):
    """One graph of one device. A replay reads and writes the tensors of the capture."""

    def __init__(self, device: AcceleratorDevice) -> None:
        self._device = device
        self._graph: Any = None
        self._stream: Any = None
        self._results: list[torch.Tensor] | None = None
        self._bytes = GraphBytes(0, 0, 0)
        self._before = 0

    def capture_begin(
        self,
        inputs: Sequence[torch.Tensor | None],
        locate: Callable[[], str],
        constants: Sequence[torch.Tensor] | None,
    ) -> None:
        if self._graph is not None:
            raise StateError("this graph was captured already: call reset() first, or use a new Graph")
        if self._device.open is not None:
            raise StateError("a capture is already open on this device: end it before you begin another")
        index = next((t.device.index for t in inputs if t is not None and t.device.type == self._device.name), None)
        self._device.open = self
        self._before = self._device.reserved(index)
        self._stream = self._device.capture_stream(index)
        self._stream.wait_stream(torch.accelerator.current_stream(index))
        self._stream.__enter__()
        try:
            graph = torch.accelerator.Graph(pool=self._device.pool, capture_error_mode="thread_local")
            graph.capture_begin()
        except RuntimeError as error:
            self._leave()
            raise CaptureError(_in_words(error), _in_words(error), None) from error
        self._graph = graph
        self._device.graphs += 1
        self._ends = weakref.finalize(graph, self._device.dropped)  # nobody need call reset()
        self._ends.atexit = False

    def _leave(self) -> None:
        self._device.open = None
        self._stream.__exit__(None, None, None)
        self._stream = None

    def capture_end(self, outputs: Sequence[torch.Tensor] | None) -> None:
        if self._graph is None or self._stream is None:
            raise StateError("capture_end without capture_begin")
        index = self._stream.device.index
        try:
            self._graph.capture_end()
        except RuntimeError as error:
            raise CaptureError(_in_words(error), _in_words(error), None) from error
        finally:
            self._leave()
        self._device.pool = self._graph.pool()
        self._results = list(outputs or [])
        held = sum(t.untyped_storage().nbytes() for t in self._results)
        self._bytes = GraphBytes(max(0, self._device.reserved(index) - self._before), held, 0)

    def bytes(self) -> GraphBytes:
        return self._bytes

    def draws_random_numbers(self) -> bool:
        return False  # not known, and nobody asks it of a device whose graphs move its generators themselves

    def instantiate(self, *, poison: bool) -> None:
        if self._graph is None or self._results is None:
            raise StateError("nothing was captured: capture before you replay, and not after reset()")

    def replay(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if self._graph is None or self._results is None:
            raise StateError("nothing was captured: capture before you replay, and not after reset()")
        self._graph.replay()
        return self._results

    def reset(self) -> None:
        if self._stream is not None:
            try:
                self._graph.capture_end()  # of a capture whose work raised: the device has to leave it
            except RuntimeError:
                pass
            finally:
                self._leave()
        graph, self._graph, self._results = self._graph, None, None
        if graph is not None:
            graph.reset()
            self._ends()

    def debug_dump(self) -> str:
        if self._graph is None:
            return "empty graph"
        with TemporaryDirectory() as folder:
            path = Path(folder) / "graph"
            self._graph.debug_dump(str(path))
            found = sorted(Path(folder).iterdir())
            return "\n".join(f.read_text() for f in found)


class AcceleratorDevice(Device):
    """A kind of accelerator whose PyTorch extension registers a graph with `torch.accelerator.Graph`."""

    capabilities = Capabilities(capture_executes=False, rebind_inputs=False, fresh_outputs=False)

    def __init__(self, name: str) -> None:
        found = torch.accelerator.current_accelerator(check_available=True)
        if found is None or found.type != name:
            raise UnsupportedError(f"no {name} is there: torch.accelerator finds {found}")
        self.name = name
        self.pool: tuple[int, int] | None = None
        self.graphs = 0  # that live
        self.open: AcceleratorGraph | None = None
        self._streams: dict[int, Any] = {}
        self._turn = threading.RLock()
        self._last: dict[int, Any] = {}  # by device, the stream that replayed last
        module = torch.get_device_module(name)  # torch.accelerator can't be asked
        self._others_capture: Callable[[], bool] = getattr(module, "is_current_stream_capturing", lambda: False)

    def graph(self) -> AcceleratorGraph:
        return AcceleratorGraph(self)

    def takes(self, tensor: torch.Tensor) -> bool:
        if tensor.device.type != self.name or tensor.layout != torch.strided:
            return False
        keys = torch._C._dispatch_keys(tensor)
        return not any(keys.has(key) for key in _NOT_PLAIN)

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        with self._turn:
            stream = torch.accelerator.current_stream()
            last = self._last.get(stream.device_index)
            if last is not None and last != stream:
                stream.wait_stream(last)  # what it was given before reads and writes the same memory
            yield
            self._last[stream.device_index] = stream

    def is_capturing(self) -> bool:
        return self.open is not None or bool(self._others_capture())

    def pool_bytes(self) -> int:
        return 0

    def dropped(self) -> None:
        """A graph is gone: with the last one the pool ends, and its memory goes back to the device."""
        self.graphs -= 1
        if self.graphs == 0:
            self.pool = None
            torch.accelerator.empty_cache()

    def reserved(self, index: int | None) -> int:
        """Bytes that torch's allocator holds of a device."""
        return int(torch.accelerator.memory_reserved(index))

    def capture_stream(self, index: int | None) -> Any:
        """The stream that captures run on, one for each device of the kind."""
        number = torch.accelerator.current_device_index() if index is None else index
        if number not in self._streams:
            self._streams[number] = torch.Stream(torch.device(self.name, number))
        return self._streams[number]


def _in_words(error: BaseException) -> str:
    text = str(error)
    if any(mark in text.lower() for mark in _NO_GRAPH_LEFT):
        return "the device has no stream left for another graph: graphs and streams share a budget"
    return text.strip().splitlines()[0] if text.strip() else type(error).__name__


npu = partial(AcceleratorDevice, "npu")
xpu = partial(AcceleratorDevice, "xpu")
