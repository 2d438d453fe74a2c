"""A device that computes nothing: it records what it was told, so that policy can be tested anywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from graphmode import _C
from graphmode.devices.adapter import Capabilities, Device, DeviceGraph, GraphBytes
from graphmode.errors import CaptureError, StateError


class NullGraph(DeviceGraph):
    """Hands out, at each replay, the outputs of the capture."""

    def __init__(self, device: NullDevice) -> None:
        self._device = device
        self._outputs: list[torch.Tensor] | None = None
        self._capturing = False
        self._ready = False

    def capture_begin(
        self,
        inputs: Sequence[torch.Tensor | None],
        locate: Callable[[], str],
        constants: Sequence[torch.Tensor] | None,
    ) -> None:
        if self._outputs is not None or self._capturing:
            raise StateError("this graph was captured already: call reset() first, or use a new Graph")
        if self._device.open is not None:
            raise StateError("a capture is already open on this device: end it before you begin another")
        self._device.told("capture_begin")
        self._device.open = self
        self._capturing = True

    def capture_end(self, outputs: Sequence[torch.Tensor] | None) -> None:
        if not self._capturing:
            raise StateError("capture_end without capture_begin")
        self._capturing = False
        self._device.open = None
        self._device.told("capture_end")
        if self._device.refuse:
            reason = self._device.refuse.pop(0)
            raise CaptureError(reason, reason, None)
        self._outputs = list(outputs or [])

    def bytes(self) -> GraphBytes:
        return GraphBytes(self._device.bytes_per_graph, 0, 0)

    def draws_random_numbers(self) -> bool:
        return False

    def instantiate(self, *, poison: bool) -> None:
        if self._outputs is None:
            raise StateError("nothing was captured: capture before you replay, and not after reset()")
        self._device.told("instantiate")
        self._ready = True

    def replay(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if self._outputs is None or not self._ready:
            raise StateError("nothing was captured: capture before you replay, and not after reset()")
        self._device.told("replay")
        return list(self._outputs)

    def reset(self) -> None:
        self._device.told("reset")
        if self._capturing:
            self._device.open = None
        self._outputs, self._capturing, self._ready = None, False, False

    def debug_dump(self) -> str:
        return "null graph"


class NullDevice(Device):
    """Counts calls; `refuse` holds reasons for which the next captures are refused."""

    name = "null"
    capabilities = Capabilities(capture_executes=True, rebind_inputs=False, fresh_outputs=False)

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.refuse: list[str] = []
        self.bytes_per_graph = 0
        self.open: NullGraph | None = None

    def told(self, what: str) -> None:
        """Notes a call."""
        self.calls.append(what)

    def graph(self) -> NullGraph:
        return NullGraph(self)

    def takes(self, tensor: torch.Tensor) -> bool:
        return _C.is_plain(tensor)

    def is_capturing(self) -> bool:
        return self.open is not None

    def pool_bytes(self) -> int:
        return 0
