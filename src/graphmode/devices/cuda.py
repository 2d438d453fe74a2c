"""Graphs of GPUs by `torch.cuda.CUDAGraph`, which PyTorch 2.13 does not offer under `torch.accelerator.Graph`.

All else is `accelerator.py`'s. No GPU has run this: its contract tests are skipped where there is none.
"""

from __future__ import annotations

from typing import Any

import torch

from graphmode.devices.accelerator import AcceleratorDevice
from graphmode.devices.pools import Handle


class _Graph:
    """A CUDA graph with the calls of `torch.accelerator.Graph`."""

    def __init__(self, pool: Handle | None) -> None:
        self._pool: Any = pool  # torch's own type for it has no name outside
        self._graph = torch.cuda.CUDAGraph()
        self.capture_end = self._graph.capture_end
        self.replay = self._graph.replay
        self.pool = self._graph.pool
        self.debug_dump = self._graph.debug_dump

    def capture_begin(self) -> None:
        # thread_local: other threads may go on with work that a capture would forbid
        self._graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")


class CudaDevice(AcceleratorDevice):
    """NVIDIA's GPUs, and AMD's under ROCm."""

    def __init__(self) -> None:
        super().__init__("cuda")

    def empty_graph(self, pool: Handle | None) -> _Graph:
        return _Graph(pool)
