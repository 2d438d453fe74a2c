"""The peers that are compared: how each turns a module into a callable, and what graphmode counted.

graphmode is imported only when one of its peers is asked for, so that the others run without it.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

PEERS = ("eager", "empty", "inductor", "graphmode", "graphmode.compile", "graphmode-max", "replay")


class Replay:
    """A raw `graphmode.Graph` behind a call; `graph.replay` alone is the bare replay of its own inputs."""

    def __init__(self, step: Callable[..., Any], inputs: Sequence[torch.Tensor]) -> None:
        import graphmode

        for _ in range(2):
            step(*inputs)
        self.static = inputs
        with graphmode.Graph() as graph:
            self.outputs = step(*inputs)
        self.graph = graph

    def __call__(self, *inputs: torch.Tensor) -> Any:
        for slot, value in zip(self.static, inputs, strict=True):
            slot.copy_(value)
        self.graph.replay()
        return self.outputs


def prepare(peer: str, step: Callable[..., Any], inputs: Sequence[torch.Tensor]) -> Callable[..., Any]:
    """`step` as the peer runs it. Compiling may be put off to the first call, as torch.compile does."""
    match peer:
        case "eager":
            return step
        case "empty":
            return torch.compile(step, backend=lambda gm, example_inputs: gm.forward, dynamic=False)
        case "inductor":
            return torch.compile(step, backend="inductor", dynamic=False)
        case "graphmode":
            return torch.compile(step, backend="graphmode", options={"mode": "reduce-overhead"}, dynamic=False)
        case "graphmode-max":
            return torch.compile(step, backend="graphmode", options={"mode": "max-autotune"}, dynamic=False)
        case "graphmode.compile":
            import graphmode

            return graphmode.compile(step)
        case "replay":
            return Replay(step, inputs)
    raise ValueError(f"peer {peer!r} is not one of {', '.join(PEERS)}")


def counters(peer: str) -> dict[str, Any] | None:
    """What `graphmode.report()` counted in this process; None for the other peers."""
    if not peer.startswith("graphmode"):
        return None
    import graphmode

    report = graphmode.report()
    numbers = {name: getattr(report, name) for name in ("graphs", "captures", "replays", "breaks", "live_calls")}
    reasons = [f"{f.count} x {f.reason}" + (f" ({f.line})" if f.line else "") for f in report.fallbacks]
    return {**numbers, "bytes": report.bytes.total, "fallbacks": reasons}


def dynamo_graphs() -> int:
    """How many graphs Dynamo compiled in this process; it is not imported to ask, being 70 MB of its own."""
    dynamo = sys.modules.get("torch._dynamo")
    return dynamo.utils.counters["stats"]["unique_graphs"] if dynamo else 0


def start_afresh(peer: str) -> None:
    """Drops all that was compiled: the instances of a class share one limit of recompiles in Dynamo."""
    if peer not in ("eager", "replay"):
        torch._dynamo.reset()
    if peer.startswith("graphmode") or peer == "replay":
        import graphmode

        graphmode.reset()
