"""Graphs of accelerators, by `torch.accelerator.Graph`: Ascend NPUs and Intel's XPUs, with no code of their own.

All graphs of a device share one pool of memory: what one graph keeps for itself is given to the next, since replays
follow one another. So inputs are copied in before a replay and results are copied out after it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, Protocol

import torch

import graphmode.fusion.npu as npu_fusions
from graphmode import _C
from graphmode.devices import npu_updates
from graphmode.devices.adapter import Capabilities, Device, DeviceGraph, GraphBytes, installed
from graphmode.devices.pools import Handle, Pool
from graphmode.errors import CaptureError, StateError, UnsupportedError
from graphmode.fusion.fuse import Table
from graphmode.program.updates import Lists, Updatable

_NO_GRAPH_LEFT = ("207008", "alloc sq cq fail", "stream resource")  # Ascend's: streams and graphs share a budget
_RAW = "graphs of this device share one memory, which a raw graph's tensors can't: use torch.accelerator.Graph itself"
_NO_EXPANDING = "expandable_segments:False"  # the user's word on it
_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_NPU_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
_FULL = "the device has no stream left for another graph: graphs and streams share a budget"
_NOT_PLAIN = tuple(  # tensors of these dispatch to something else before the device
    getattr(torch._C.DispatchKey, name)
    for name in (
        "Python",
        "FuncTorchBatched",
        "FuncTorchGradWrapper",
        "Functionalize",
        "ZeroTensor",
        "Conjugate",
        "Negative",
    )
)


class Groups(Protocol):
    """Captured calls of one graph that can be updated: of `DeviceGraph`, the two calls for it."""

    def capture(self, op: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]: ...
    def update(self, lists: Sequence[Lists]) -> None: ...


class _Held:
    """A graph of torch's, which ends with the last reference to it."""

    def __init__(self, device: AcceleratorDevice, pool: Pool) -> None:
        self.graph: Any = None
        self._device = device
        self._pool: Pool | None = None
        self._handle = pool.enter()
        self._pool = pool  # from here on its end is told
        self.graph = device.empty_graph(self._handle)

    def captured(self) -> Pool:
        """The capture ended; the pool that it is in."""
        assert self._pool is not None
        handle = self.graph.pool()
        self._pool.captured(self._handle, handle)
        self._handle = handle
        return self._pool

    def failed(self, *, began: bool) -> None:
        """The capture could not begin, or end."""
        assert self._pool is not None
        self._pool.failed(self.graph, self._handle, began=began)

    def never_began(self) -> None:
        """There is no graph: nothing of the device's budget is freed with it."""
        assert self._pool is not None
        self.graph = None
        self._pool.leave(self._handle)
        self._pool = None

    def __del__(self) -> None:
        self.graph = None
        if self._pool is not None and getattr(torch, "accelerator", None) is not None:  # at exit modules go first
            self._pool.leave(self._handle)
            self._device.dropped()


class AcceleratorGraph(DeviceGraph):
    """One graph of one device. A replay reads and writes the tensors of the capture."""

    def __init__(self, device: AcceleratorDevice) -> None:
        self._device = device
        self._held: _Held | None = None
        self._stream: Any = None
        self._ready = False
        self._bytes = GraphBytes(0, 0, 0)
        self._before = 0
        self._overwritten = False
        self._groups: Groups | None = None

    def overwritten(self) -> None:
        self._overwritten = True

    def capture_begin(
        self,
        inputs: Sequence[torch.Tensor | None],
        locate: Callable[[], str],
        constants: Sequence[torch.Tensor] | None,
    ) -> None:
        if self._held is not None:
            raise StateError("this graph was captured already: call reset() first, or use a new Graph")
        if constants is None and not self._overwritten:
            raise CaptureError(_RAW)
        if self._device.capturing_thread is not None:
            raise StateError("a capture is already open on this device: end it before you begin another")
        if self._device.full:
            raise CaptureError(_FULL, for_want_of_room=True)
        index = next((t.device.index for t in inputs if t is not None and t.device.type == self._device.name), None)
        self._before = self._device.reserved(index)
        stream = self._device.capture_stream(index)
        stream.wait_stream(torch.accelerator.current_stream(index))
        held = _Held(self._device, self._device.pool(index))
        stream.__enter__()
        try:
            held.graph.capture_begin()
        except RuntimeError as error:
            stream.__exit__(None, None, None)
            held.failed(began=False)
            held.never_began()
            raise _refused(error, self._device) from error
        self._one_block = self._device.in_one_block()
        self._one_block.__enter__()
        self._stream, self._held = stream, held
        self._device.capturing_thread = threading.get_ident()

    def _leave(self) -> None:
        self._device.capturing_thread = None
        self._one_block.__exit__(None, None, None)
        self._stream.__exit__(None, None, None)
        self._stream = None

    def capture_end(self, outputs: Sequence[torch.Tensor] | None) -> None:
        if self._held is None or self._stream is None:
            raise StateError("capture_end without capture_begin")
        index = self._stream.device_index
        try:
            self._held.graph.capture_end()
        except RuntimeError as error:
            self._held.failed(began=True)
            raise _refused(error, self._device) from error
        finally:
            self._leave()
        pool = self._held.captured()
        self._ready = True
        results = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in outputs or []}
        grown = max(0, self._device.reserved(index) - self._before)
        pool.bytes += grown
        self._bytes = GraphBytes(grown, sum(results.values()), 0)

    def capture_updatable(
        self, op: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Any, ...]:
        if self._groups is None:
            self._groups = self._device.groups()
        return self._groups.capture(op, args, kwargs)

    def update(self, lists: Sequence[Lists]) -> None:
        if self._groups is None or not self._ready:
            raise StateError("nothing was captured that can be updated")
        self._groups.update(lists)

    def bytes(self) -> GraphBytes:
        return self._bytes

    def draws_random_numbers(self) -> bool:
        return False  # not known, and nobody asks it of a device whose graphs move its generators themselves

    def instantiate(self, *, poison: bool) -> None:
        if not self._ready:
            raise StateError("nothing was captured: capture before you replay, and not after reset()")

    def replay(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        held = self._held
        if held is None or not self._ready:
            raise StateError("nothing was captured: capture before you replay, and not after reset()")
        held.graph.replay()
        return []

    def reset(self) -> None:
        if self._stream is not None and self._held is not None:
            try:
                self._held.graph.capture_end()  # of a capture whose work raised: the device has to leave it
            except RuntimeError:
                self._held.failed(began=True)
            finally:
                self._leave()
        self._held, self._groups, self._ready = None, None, False

    def debug_dump(self) -> str:
        if self._held is None:
            return "empty graph"
        with TemporaryDirectory() as folder:
            path = Path(folder) / "graph"
            self._held.graph.debug_dump(str(path))
            found = sorted(Path(folder).iterdir())
            return "\n".join(f.read_text() for f in found)


class AcceleratorDevice(Device):
    """A kind of accelerator whose PyTorch extension registers a graph with `torch.accelerator.Graph`."""

    capabilities = Capabilities(capture_executes=False, rebind_inputs=False, fresh_outputs=False, keeps_memory=True)

    def __init__(
        self,
        name: str,
        fusions: Table = MappingProxyType({}),
        updates: Updatable = MappingProxyType({}),
        groups: Callable[[], Groups] | None = None,
    ) -> None:
        """What is this kind of device's own.

        Args:
            name: of the device type.
            fusions: its fused calls.
            updates: calls that a graph can be given anew, as `Capabilities` has them.
            groups: who captures and updates those of one graph.
        """
        found = torch.accelerator.current_accelerator(check_available=True)
        if found is None or found.type != name:
            raise UnsupportedError(
                f"no {name} is there (torch.accelerator finds {found}); installed adapters: {installed()}"
            )
        self.name = name
        self._fusions = fusions
        self._pools: dict[int, Pool] = {}  # by index
        self._groups = groups
        self.capabilities = dataclasses.replace(self.capabilities, updates=updates)
        self.full = False  # no stream is left for another graph
        self.capturing_thread: int | None = None
        self._streams: dict[int, Any] = {}
        self.turn = _C.Turn(name)
        module = torch.get_device_module(name)  # torch.accelerator can't be asked
        self._others_capture: Callable[[], bool] = getattr(module, "is_current_stream_capturing", lambda: False)
        set_for_all = torch._C._accelerator_setAllocatorSettings
        self._set: Callable[[str], None] = getattr(module.memory, "_set_allocator_settings", set_for_all)

    def graph(self) -> AcceleratorGraph:
        return AcceleratorGraph(self)

    def empty_graph(self, pool: Handle | None) -> Any:
        """A graph of torch's in a pool, with the calls of `torch.accelerator.Graph`; None: it makes one."""
        return torch.accelerator.Graph(pool=pool, capture_error_mode="thread_local")

    def pool(self, index: int | None) -> Pool:
        """That of one device."""
        number = torch.accelerator.current_device_index() if index is None else index
        return self._pools.setdefault(number, Pool(self.name, number))

    def groups(self) -> Groups:
        """Who captures and updates the calls of one graph.

        Raises:
            UnsupportedError: this kind of device has none.
        """
        if self._groups is None:
            raise UnsupportedError(f"a graph of the {self.name} has no update of captured calls")
        return self._groups()

    def fusions(self) -> Table:
        return self._fusions

    def takes(self, tensor: torch.Tensor) -> bool:
        if tensor.device.type != self.name or tensor.layout != torch.strided:
            return False
        keys = torch._C._dispatch_keys(tensor)
        return not any(keys.has(key) for key in _NOT_PLAIN)

    @contextlib.contextmanager
    def in_one_block(self) -> Iterator[None]:
        """What is allocated meanwhile lies in a block that grows: a larger graph takes the place of smaller ones.

        Without it a pool has blocks of the sizes of its first graphs, which no larger tensor fits into.
        """
        wanted = not _C.expandable_segments() and not any(_NO_EXPANDING in os.environ.get(v, "") for v in _ALLOCATOR)
        try:
            if wanted:
                self._set("expandable_segments:True")
        except (RuntimeError, ValueError):
            wanted = False  # not with this allocator, or not with the user's other settings
        try:
            yield
        finally:
            if wanted:
                self._set("expandable_segments:False")

    def is_capturing(self) -> bool:
        return self.capturing_thread == threading.get_ident() or bool(self._others_capture())

    def pool_bytes(self) -> int:
        return sum(pool.bytes for pool in self._pools.values())

    def dropped(self) -> None:
        """A graph is gone, and with it what it had of the device's budget."""
        self.freed += 1
        self.full = False

    def reserved(self, index: int | None) -> int:
        """Bytes that torch's allocator holds of a device."""
        return int(torch.accelerator.memory_reserved(index))

    def capture_stream(self, index: int | None) -> Any:
        """The stream that captures run on, one for each device of the kind."""
        number = torch.accelerator.current_device_index() if index is None else index
        if number not in self._streams:
            self._streams[number] = torch.Stream(torch.device(self.name, number))
        return self._streams[number]


def _refused(error: BaseException, device: AcceleratorDevice) -> CaptureError:
    text = str(error).strip()
    if any(mark in text.lower() for mark in _NO_GRAPH_LEFT):
        device.full = True
        return CaptureError(_FULL, for_want_of_room=True)
    return CaptureError(text.splitlines()[0] if text else type(error).__name__)


npu = partial(AcceleratorDevice, "npu", npu_fusions.TABLE, npu_updates.TABLE, npu_updates.TaskGroups)
xpu = partial(AcceleratorDevice, "xpu")
