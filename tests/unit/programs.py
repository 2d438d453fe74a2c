"""Small ATen programs on fake tensors, as the passes get them. Owns no check."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.fx as fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

aten = torch.ops.aten


def traced(f: Callable[..., Any], *inputs: torch.Tensor) -> fx.GraphModule:
    """The ATen graph of `f`, with fake values on its nodes."""
    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()) as mode:
        fakes = [mode.from_tensor(x.detach(), static_shapes=True) for x in inputs]
        return make_fx(f, tracing_mode="real", pre_dispatch=True)(*fakes)


def targets(gm: fx.GraphModule) -> list[Any]:
    """What the graph calls, in order."""
    return [n.target for n in gm.graph.nodes if n.op == "call_function"]


def same_results(gm: fx.GraphModule, f: Callable[..., Any], *inputs: torch.Tensor) -> None:
    """The graph does to copies of the inputs what `f` does."""
    gm.graph.lint()
    gm.recompile()
    mine, theirs = [x.clone() for x in inputs], [x.clone() for x in inputs]
    torch.testing.assert_close(gm(*mine), f(*theirs), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
