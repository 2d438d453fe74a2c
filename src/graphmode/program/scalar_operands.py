"""Pass: a Python number that changes between calls stays the tensor it came in as, so that its calls can be captured.

Dynamo hands a varying float over as a double tensor without dimensions and reads it back with `item()`. Reading it is a
break; as an operand of plain arithmetic the tensor does the same, bit for bit.
"""

from __future__ import annotations

import torch
import torch.fx as fx

from graphmode.program.effects import written_inputs

aten = torch.ops.aten
_ARITHMETIC = {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor}


def use_scalar_tensors(gm: fx.GraphModule) -> int:
    """Replaces numbers read from double tensors by those tensors, as operands of arithmetic; returns how many."""
    replaced = 0
    inputs = gm.graph.find_nodes(op="placeholder")
    written = {inputs[i] for i in written_inputs(gm)}  # which may have other values by the time they are used
    for read in gm.graph.find_nodes(op="call_function", target=aten.item.default):
        source = read.args[0]
        if not isinstance(source, fx.Node) or source in written or not _is_number(source):
            continue
        for user in list(read.users):
            if user.target in _ARITHMETIC and user.args[1] is read and not user.kwargs and _decides_dtype(user.args[0]):
                user.update_arg(1, source)
                replaced += 1
            elif user.target is aten.rsub.Scalar and len(user.args) == 2 and _decides_dtype(user.args[0]):
                user.target = aten.sub.Tensor  # which is what rsub calls, with its operands in this order
                user.args = (source, user.args[0])
                replaced += 1
    return replaced


def _is_number(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return (
        node.op == "placeholder" and isinstance(value, torch.Tensor) and value.dtype == torch.double and not value.dim()
    )


def _decides_dtype(operand: object) -> bool:
    """Whether the other operand sets the result's dtype, beside a number as beside a tensor without dimensions."""
    value = operand.meta.get("val") if isinstance(operand, fx.Node) else None
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() > 0
