"""`Graph`: capture a block of code and replay it, on every device, with the surface of `torch.accelerator.Graph`.

Device semantics: inputs and outputs are the tensors of the capture, and a replay reads and overwrites their memory.
"""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import Literal

import torch
from torch._dynamo.exc import UncapturedHigherOrderOpError
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from graphmode.devices.adapter import device_named
from graphmode.errors import CaptureError, StateError
from graphmode.options import resolve
from graphmode.program.lines import line_running
from graphmode.runtime.refusals import RefuseUnseen

CaptureErrorMode = Literal["default", "global", "thread_local", "relaxed"]


class Graph:
    """Records the work of a block and replays it.

    Example:
        ```python
        x = torch.zeros(4)
        with graphmode.Graph() as g:
            y = x * 2 + 1
        x.fill_(3)
        g.replay()  # y is now all sevens
        ```

    Args:
        keep_graph: leave instantiation to `instantiate()` or the first `replay()`.
        pool: accepted for the surface's sake; graphs of one device share their memory anyway.
        capture_error_mode: accepted for the surface's sake; a capture here is the calling thread's alone.
        device: device type whose adapter captures; the CPU by default.

    Source: torch/accelerator/graphs.py of torch 2.13.
    """

    def __init__(
        self,
        keep_graph: bool = False,
        *,
        pool: tuple[int, int] | None = None,
        capture_error_mode: CaptureErrorMode = "default",
        device: str | torch.device = "cpu",
    ) -> None:
        self.keep_graph = keep_graph
        self.graph_pool = pool
        self.capture_error_mode = capture_error_mode
        self._device = device_named(torch.device(device).type if device != "null" else "null")
        self._graph = self._device.graph()
        self._refuse: RefuseUnseen | None = None
        self._thread = 0
        self._ready = False
        self._state: Literal["empty", "capturing", "captured"] = "empty"

    def capture_begin(self) -> None:
        """Starts recording this thread's work.

        Raises:
            StateError: this graph holds a capture already, or a capture is open on this thread.
        """
        if self._state != "empty":
            raise StateError("this graph was captured already: call reset() first, or use a new Graph")
        if self._device.is_capturing():
            raise StateError("a capture is already open on this thread: end it before you begin another")
        self._refuse_modes()
        self._thread = threading.get_ident()
        self._refuse = RefuseUnseen()
        self._refuse.__enter__()  # type: ignore[no-untyped-call]
        self._graph.capture_begin([], line_running, None)
        self._state = "capturing"

    def capture_end(self) -> None:
        """Ends the recording; unless `keep_graph`, the graph is ready to replay.

        Raises:
            CaptureError: the work can't be a graph; the message names the call and your line.
            StateError: no capture is open.
        """
        if self._state != "capturing":
            raise StateError("capture_end without capture_begin")
        self._on_own_thread("capture_end")
        self._leave()
        try:
            self._graph.fuse(resolve().fuel)
            self._graph.capture_end(None)
        except CaptureError:
            self._graph.reset()
            self._state = "empty"
            raise
        self._state = "captured"
        if not self.keep_graph:
            self.instantiate()

    def _leave(self) -> None:
        if self._refuse is not None:
            self._refuse.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._refuse = None

    def _on_own_thread(self, call: str) -> None:
        if threading.get_ident() != self._thread:
            raise StateError(f"{call} on another thread than capture_begin: a capture is the calling thread's alone")

    def _refuse_modes(self) -> None:
        modes = _get_current_dispatch_mode_stack()
        if modes:
            raise StateError(
                f"a Python dispatch mode is active ({type(modes[-1]).__name__}), and under one torch takes other "
                "kernels than a replay would find outside: leave it before the capture"
            )

    def register_generator_state(self, generator: torch.Generator) -> None:
        """Lets the block draw from a generator besides torch's default one. Call it before the capture.

        Source: torch/cuda/graphs.py of torch 2.13.

        Raises:
            StateError: a capture is open or done.
        """
        if self._state != "empty":
            raise StateError("register_generator_state comes before the capture")
        self._graph.register_generator(generator)

    def instantiate(self) -> None:
        """Resolves every address, once."""
        if self._state != "captured":
            raise StateError("nothing was captured: use `with graph:` or capture_begin() and capture_end() first")
        self._graph.instantiate(poison=resolve().poison)
        self._ready = True

    def replay(self) -> None:
        """Does the recorded work again, on the memory it was recorded on.

        Raises:
            StateError: nothing was captured, or the graph was reset.
            InputError: a tensor the graph reads or writes was resized or moved since.
        """
        if self._device.is_capturing():
            raise StateError("replay inside a capture: no graph is part of another. Replay both, in turn")
        if not self._ready:
            if self._state != "captured":
                raise StateError("replay before capture: nothing was captured, or the graph was reset")
            self.instantiate()
        self._graph.replay([])

    def reset(self) -> None:
        """Drops the recorded work and gives its memory back. The object can capture again."""
        if self._state == "capturing":
            self._on_own_thread("reset")
        self._leave()
        self._graph.reset()
        self._ready = False
        self._state = "empty"

    def pool(self) -> tuple[int, int]:
        """The id of the memory that intermediates lie in: one per device."""
        return (0, 0)

    def enable_debug_mode(self) -> None:
        """Accepted for the surface's sake: `debug_dump` always works."""

    def debug_dump(self, path: str) -> None:
        """Writes the graph as text."""
        Path(path).write_text(str(self) + "\n")

    def __str__(self) -> str:
        return self._graph.debug_dump() if self._state == "captured" else f"Graph({self._state})"

    def __enter__(self) -> Graph:
        self.capture_begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.reset()
            if isinstance(value, UncapturedHigherOrderOpError):
                raise CaptureError(
                    "a higher-order op (torch.cond, while_loop) chooses among programs, which a raw graph can't hold: "
                    'compile with backend="graphmode", which runs it live between two graphs'
                ) from value
            return
        self.capture_end()
