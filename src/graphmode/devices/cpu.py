"""The CPU's graph: our native recorder and replayer. Owns the translation to it, no policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch._dynamo.callback import CallbackArgs, callback_handler

from graphmode import _C
from graphmode.devices.adapter import Capabilities, Device, DeviceGraph, GraphBytes
from graphmode.errors import CaptureError, InputError, StateError
from graphmode.inspect.dump import dump_rows


def _pause(_: CallbackArgs) -> None:
    _C.pause_recording(True)


def _go_on(_: CallbackArgs) -> None:
    _C.pause_recording(False)


class CpuGraph(DeviceGraph):
    """A graph of CPU work, recorded at PyTorch's dispatcher."""

    def __init__(self) -> None:
        self._capture: _C.Capture | None = None
        self._plan: _C.Plan | None = None
        self.executable: _C.Executable | None = None
        self._needs: Callable[[int], tuple[list[int], list[int]]] | None = None
        self._generators: list[torch.Generator] = []
        self._handed_on: list[int] = []
        self._fuel = 0

    def register_generator(self, generator: torch.Generator) -> None:
        """A generator that the block may draw from, besides the default one."""
        self._generators.append(generator)

    def at(self, position: int, op: str) -> None:
        if self._capture is not None:
            self._capture.at(position, op)

    def find(self, tensor: torch.Tensor) -> tuple[str, int] | None:
        return None if self._capture is None else self._capture.find(tensor)

    def hand_on(self, positions: Sequence[int]) -> None:
        self._handed_on = list(positions)

    def fuse(self, most: int) -> None:
        self._fuel = most

    def go_on_with(self, needs: Callable[[int], tuple[list[int], list[int]]]) -> None:
        self._needs = needs

    def capture_begin(
        self,
        inputs: Sequence[torch.Tensor | None],
        locate: Callable[[], str],
        constants: Sequence[torch.Tensor] | None,
    ) -> None:
        if self._plan is not None or self._capture is not None:
            raise StateError("this graph was captured already: call reset() first, or use a new Graph")
        if _C.is_capturing():
            raise StateError("a capture is already open on this thread: end it before you begin another")
        # Dynamo's tracing runs calls on fake tensors, which are no work of a capture. Its reset() forgets call-backs.
        if _pause not in callback_handler.start_callbacks:
            callback_handler.register_start_callback(_pause)
            callback_handler.register_end_callback(_go_on)
        capture = _C.Capture()
        for generator in self._generators:
            capture.generator(generator)
        capture.begin(list(inputs), locate, None if constants is None else list(constants), self._handed_on)
        self._capture = capture

    def capture_end(self, outputs: Sequence[torch.Tensor] | None) -> None:
        capture = self._capture
        if capture is None:
            raise StateError("capture_end without capture_begin")
        self._capture = None
        capture.end()
        if outputs is None:
            capture.fix_survivors()
            if not capture.nodes and not capture.refusal[0]:
                raise CaptureError("nothing was captured: the block computes nothing on the CPU")
        else:
            capture.outputs(list(outputs))
        plan = capture.plan(self._needs, self._fuel)
        reason, line = capture.refusal
        if reason:
            raise CaptureError(reason + (f" ({line})" if line else ""), reason, line)
        self._plan = plan

    def refusal(self) -> bool:
        return self._capture is not None and bool(self._capture.refusal[0])

    def abandon(self) -> None:
        """Ends a capture whose work raised."""
        if self._capture is not None:
            self._capture.end()
            self._capture = None

    def bytes(self) -> GraphBytes:
        plan = self.plan
        return GraphBytes(plan.arena_bytes, plan.output_bytes, plan.fixed_bytes)

    @property
    def plan(self) -> _C.Plan:
        """What was captured, with every address resolved."""
        if self._plan is None:
            raise StateError("nothing was captured: capture before you replay, and not after reset()")
        return self._plan

    def draws_random_numbers(self) -> bool:
        return self.plan.random_nodes > 0

    def instantiate(self, *, poison: bool) -> None:
        self.executable = _C.Executable(self.plan, poison)

    def replay(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        plan = self.plan
        if self.executable is None:
            raise StateError("the graph was not instantiated")
        if len(inputs) != plan.inputs:
            raise InputError(f"the graph takes {plan.inputs} inputs, got {len(inputs)}")
        try:
            return self.executable.run(list(inputs))
        except _C.Moved as error:
            raise InputError(str(error)) from None
        except _C.Diverged as error:
            raise InputError(f"{error}: a raw graph can't go on; what came before it has happened") from None

    def reset(self) -> None:
        self.abandon()
        self._plan = None
        self.executable = None

    def debug_dump(self) -> str:
        return dump_rows(self.plan.rows())


class CpuDevice(Device):
    """The CPU."""

    name = "cpu"
    capabilities = Capabilities(capture_executes=True, rebind_inputs=True, fresh_outputs=True)

    def graph(self) -> CpuGraph:
        return CpuGraph()

    def takes(self, tensor: torch.Tensor) -> bool:
        return _C.is_plain(tensor)

    def is_capturing(self) -> bool:
        return _C.is_capturing()

    def pool_bytes(self) -> int:
        return _C.arena_bytes()
