"""From Dynamo's graph to ATen, mutation kept: no functionalisation, so in-place ops stay in place.

Runs Dynamo's graph once on its own fake tensors under make_fx. Decides nothing about capture.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.fx as fx
from torch._guards import detect_fake_mode
from torch.fx import traceback as fx_traceback
from torch.fx.experimental.proxy_tensor import make_fx


class LoweringError(Exception):
    """The graph can't be traced to ATen; it is run as Dynamo gave it."""


def fake_inputs(gm: fx.GraphModule) -> list[Any]:
    """Dynamo's example values of the placeholders: fake tensors and symbolic integers."""
    values = []
    for node in gm.graph.find_nodes(op="placeholder"):
        if "example_value" not in node.meta:
            raise LoweringError(f"placeholder {node.name} has no example value")
        values.append(node.meta["example_value"])
    return values


def lower(gm: fx.GraphModule) -> fx.GraphModule:
    """Lowers Dynamo's graph to ATen calls, with the user's source lines on the nodes.

    Raises:
        LoweringError: an op can't be traced with fake tensors; the message says which.
    """
    values = fake_inputs(gm)
    mode = detect_fake_mode(values)
    interpreter = fx.Interpreter(gm)

    def run(*args: Any) -> Any:
        return interpreter.run(*args, enable_io_processing=False)

    try:
        with contextlib.ExitStack() as stack:
            if mode is not None:
                stack.enter_context(mode)
                if mode.shape_env is not None:
                    stack.enter_context(mode.shape_env.ignore_fresh_unbacked_symbols())
            stack.enter_context(torch.no_grad())
            stack.enter_context(fx_traceback.preserve_node_meta())
            lowered: fx.GraphModule = make_fx(run, tracing_mode="real", pre_dispatch=True, _allow_non_fake_inputs=True)(
                *values
            )
    except Exception as error:  # whatever an op's fake kernel raises: the graph still runs, unlowered
        raise LoweringError(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from error
    _check_placeholders(gm, lowered)
    return lowered


def _check_placeholders(gm: fx.GraphModule, lowered: fx.GraphModule) -> None:
    want = len(gm.graph.find_nodes(op="placeholder"))
    got = len(lowered.graph.find_nodes(op="placeholder"))
    if want != got:
        raise LoweringError(f"lowering changed the number of inputs from {want} to {got}")


def output_values(gm: fx.GraphModule) -> Sequence[Any]:
    """The graph's output arguments, flat."""
    (output,) = gm.graph.find_nodes(op="output")
    result = output.args[0]
    return list(result) if isinstance(result, (tuple, list)) else [result]
