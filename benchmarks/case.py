"""The worker's side of a benchmark: builds a case, runs it as one peer, and answers with times and results.

Lives in a fresh process (workers.py). The parent decides what runs when, so that noise hits all peers alike.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import memory
import numpy as np
import peers
import torch
from timing import BLOCK_NS, block, calls_for, stopwatch


@dataclass
class Case:
    """One thing to measure.

    `step(*inputs)` is the call that is timed; `checks` are further inputs of the same shapes, whose results
    are compared with eager's. `rewind` puts any state (a KV cache's position) back before each block and the
    checks; `state` is what a step writes in place and must never move or copy; `calls` bounds the calls
    between two rewinds.
    """

    model: str
    dtype: str
    batch: int
    step: Callable[..., Any]
    inputs: Sequence[torch.Tensor]
    checks: Sequence[Sequence[torch.Tensor]]
    rewind: Callable[[], None] = lambda: None
    state: Sequence[torch.Tensor] = field(default_factory=list)
    calls: int = 1_000_000


class Contestant:
    """One peer in this process. `load` a case first; then `first_call`, `block`, `results` in any order."""

    def __init__(self, peer: str, block_ns: int = BLOCK_NS) -> None:
        self.peer, self.block_ns = peer, block_ns
        self.case: Case | None = None
        torch.set_grad_enabled(False)

    def load(self, module: str, name: str) -> dict[str, Any]:
        """Builds `module.build(name)`, seeded: each process builds the same. Returns its description."""
        if self.case is not None:
            peers.start_afresh(self.peer)
        torch.manual_seed(0)
        self.case = importlib.import_module(module).build(name)
        self.calls = 0
        memory.reset_peak()
        self.base_mb = memory.status_mb("VmRSS")
        return {"model": self.case.model, "dtype": self.case.dtype, "batch": self.case.batch}

    def first_call(self) -> dict[str, float]:
        """Seconds of the first call, with all it compiles, and of the first three: the second captures."""
        with stopwatch() as ready:
            with stopwatch() as first, torch.inference_mode():
                self.run = peers.prepare(self.peer, self.case.step, self.case.inputs)
                self.case.rewind()
                self.run(*self.case.inputs)
            with torch.inference_mode():
                for _ in range(2):
                    self.run(*self.case.inputs)
        self.compiled = peers.dynamo_graphs()
        self.addresses = [tensor.data_ptr() for tensor in self.case.state]
        self.timed = (self.run.graph.replay, ()) if self.peer == "replay" else (self.run, self.case.inputs)
        return {"first_call_s": first.seconds, "ready_s": ready.seconds}

    @torch.inference_mode()
    def block(self) -> float:
        """Microseconds per call over one block."""
        if not self.calls:
            self.case.rewind()
            self.calls = calls_for(*self.timed, self.block_ns, self.case.calls // 2)
        self.case.rewind()
        # Another process ran in between: the first call fetches code and weights into the caches again.
        self.timed[0](*self.timed[1])
        return block(*self.timed, self.calls) / 1000

    @torch.inference_mode()
    def results(self) -> list[list[np.ndarray]]:
        """What the peer computes from each of the case's checks; bf16 is widened, which keeps its bits."""
        self.case.rewind()
        return [[as_array(leaf) for leaf in leaves(self.run(*inputs))] for inputs in self.case.checks]

    @torch.inference_mode()
    def state_writes(self) -> dict[str, Any]:
        """Whether a step moved the state, its size, and the bytes of it that a step writes (whole pages)."""
        self.case.rewind()
        written = memory.bytes_written(self.case.state, lambda: self.run(*self.case.inputs))
        return {
            "state_moved": self.addresses != [tensor.data_ptr() for tensor in self.case.state],
            "state_bytes": sum(tensor.untyped_storage().nbytes() for tensor in self.case.state),
            "state_bytes_written": written,
        }

    def totals(self) -> dict[str, Any]:
        """Peak MB above the loaded model, recompiles after the first three calls, graphmode's counters."""
        return {
            "peak_mb": memory.status_mb("VmHWM") - self.base_mb,
            "recompiles": peers.dynamo_graphs() - self.compiled,
            "counters": peers.counters(self.peer),
        }


def leaves(result: Any) -> list[torch.Tensor]:
    """The tensors of a result, in order, from tuples, lists and dictionaries."""
    return [leaf for leaf in torch.utils._pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]


def as_array(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().clone()
    return (tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor).numpy()
