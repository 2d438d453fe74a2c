"""Writes a case's program as the FX graph that Dynamo would hand over: one call, tensors as placeholders.

Owns the imitation of Dynamo (fake example values, flat outputs, stack traces) and nothing of the product.
"""

from __future__ import annotations

import operator
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._pytree import tree_leaves

from .samples import Case
from .storage import clone_group


def fake_inputs(case: Case) -> tuple[list[Tensor], FakeTensorMode]:
    """Fake tensors of fixed sizes for the inputs of the case's first call, and the mode they belong to."""
    mode = FakeTensorMode(shape_env=ShapeEnv())
    return _fakes(case, mode), mode


def _fakes(case: Case, mode: FakeTensorMode) -> list[Tensor]:
    return [mode.from_tensor(t, static_shapes=True) for t in clone_group(case.values[0])]


def leaves_of_fake_run(case: Case, fakes: list[Tensor], mode: FakeTensorMode) -> list[Tensor] | None:
    """The program's outputs as fake tensors; None where Dynamo, too, would find no such graph."""
    try:
        with mode:
            leaves = tree_leaves(case.call(fakes))
    except Exception:  # whatever fake tensors cannot follow: shapes from data, reads of values, missing kernels
        return None
    if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
        return None
    return leaves


def graph_of(case: Case, outputs: list[Tensor], mode: FakeTensorMode) -> fx.GraphModule:
    """The graph module: placeholders, one call of the program, one getitem per output."""

    def program(*tensors: Tensor) -> tuple[Any, ...]:
        return tuple(tree_leaves(case.call(list(tensors))))

    # Torch's own code in one call, like the helpers that Dynamo puts into graphs, and no user's Python.
    program = FunctionType(
        program.__code__, {**globals(), "__name__": "torch._dynamo.op_db"}, None, None, program.__closure__
    )
    program.__module__ = "torch._dynamo.op_db"

    graph = fx.Graph()
    inputs = []
    for i, fake in enumerate(_fakes(case, mode)):
        inputs.append(graph.placeholder(f"L_x{i}_"))
        inputs[-1].meta["example_value"] = fake
    call = graph.call_function(program, tuple(inputs))
    call.meta["example_value"] = tuple(outputs)
    call.meta["stack_trace"] = f'  File "op_db", line 1, in {case.op}\n    {case.name}'
    items = []
    for i, output in enumerate(outputs):
        items.append(graph.call_function(operator.getitem, (call, i)))
        items[-1].meta["example_value"] = output
    graph.output(tuple(items))
    return torch.fx.GraphModule({}, graph)
