"""Which calls must run live between graphs, and why. Splits a program at them."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx as fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.fx.passes.split_module import split_module

from graphmode.program.effects import PURE_PYTHON


def _values(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (tuple, list)) else [value]


def break_reason(node: fx.Node) -> str | None:
    """Why a call can't be part of a graph; None when it can."""
    target = node.target
    if isinstance(target, torch._ops.HigherOrderOperator):
        return f"higher-order op {target.name()} runs live"
    if not isinstance(target, torch._ops.OpOverload):
        return None
    if torch.Tag.data_dependent_output in target.tags or target is torch.ops.aten._local_scalar_dense.default:
        return f"{target.name()} reads a value from a tensor on the host"
    if torch.Tag.dynamic_output_shape in target.tags:
        return f"{target.name()} has an output whose size depends on data"
    if torch.Tag.cudagraph_unsafe in target.tags:
        return f"{target.name()} is marked as unsafe to capture"
    for value in _values(node.meta.get("val")):
        if isinstance(value, torch.Tensor) and free_unbacked_symbols(value) and not _inherits(node):
            return f"{target.name()} has an output whose size depends on data"
    return None


def _inherits(node: fx.Node) -> bool:
    """Whether the unbacked sizes of a result come from the arguments: then the next graph's signature holds them."""
    given: set[Any] = set()
    for argument in node.all_input_nodes:
        for value in _values(argument.meta.get("val")):
            if isinstance(value, (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)):
                given |= set(free_unbacked_symbols(value))
    made: set[Any] = set()
    for value in _values(node.meta.get("val")):
        if isinstance(value, torch.Tensor):
            made |= set(free_unbacked_symbols(value))
    return made <= given


def find_breaks(gm: fx.GraphModule) -> dict[fx.Node, str]:
    """Breaks of a program with their reasons, in order."""
    found = {}
    for node in gm.graph.nodes:
        if node.op == "call_function" and (reason := break_reason(node)) is not None:
            found[node] = reason
    return found


def _computes(stretch: Any) -> bool:
    calls = (n for n in stretch.graph.nodes if n.op in ("call_function", "call_method", "call_module"))
    return any(n.target not in PURE_PYTHON for n in calls)


def split(gm: fx.GraphModule, breaks: dict[fx.Node, str]) -> tuple[fx.GraphModule, list[str]]:
    """A module that calls one submodule per stretch; returns it and the names of those that can be graphs.

    Nodes keep their order, so that effects do too.
    """
    part: dict[fx.Node, int] = {}
    number, captured = 0, set()
    after_break = True
    for node in gm.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        if node in breaks:
            number += 1
            part[node] = number
            after_break = True
            continue
        if after_break:
            number += 1
            captured.add(number)
            after_break = False
        part[node] = number
    parent = split_module(gm, gm, lambda n: part[n], keep_original_order=True)  # type: ignore[arg-type]
    names = [f"submod_{i}" for i in sorted(captured) if hasattr(parent, f"submod_{i}")]
    return parent, [n for n in names if _computes(parent.get_submodule(n))]
