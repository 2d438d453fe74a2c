"""A device whose graphs read and write the addresses of their capture, as those of accelerators do; on the CPU.

It computes, so that copies to fixed addresses, moved weights and results held by the caller show in values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from graphmode.devices.adapter import Capabilities
from graphmode.devices.cpu import CpuDevice, CpuGraph


class PinnedGraph(CpuGraph):
    """Results are the capture's own tensors, overwritten by each replay."""

    def __init__(self) -> None:
        super().__init__()
        self._results: list[torch.Tensor] = []

    def capture_begin(
        self,
        inputs: Sequence[torch.Tensor | None],
        locate: Callable[[], str],
        constants: Sequence[torch.Tensor] | None,
    ) -> None:
        super().capture_begin([], locate, None)

    def capture_end(self, outputs: Sequence[torch.Tensor] | None) -> None:
        self._results = list(outputs or [])
        super().capture_end(None)

    def replay(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        super().replay([])
        PinnedDevice.meanwhile()
        return self._results


class PinnedDevice(CpuDevice):
    """As an accelerator: inputs are copied in, results copied out."""

    name = "pinned"
    capabilities = Capabilities(capture_executes=True, rebind_inputs=False, fresh_outputs=False)
    meanwhile: Callable[[], None] = staticmethod(lambda: None)  # what another stream does while a graph runs

    def graph(self) -> CpuGraph:
        return PinnedGraph()
