"""Pass: what an in-place op returns is the argument it wrote; later calls use the argument."""

from __future__ import annotations

import torch
import torch.fx as fx


def use_written_arguments(gm: fx.GraphModule) -> int:
    """Replaces the results of in-place and out= calls by the arguments they are; returns how many.

    So a value has one name, and a stretch between two breaks does not hand out an input as a result.
    """
    replaced = 0
    for node in list(gm.graph.nodes):
        argument = _written(node)
        if argument is not None and node.users:
            node.replace_all_uses_with(argument)
            replaced += 1
    return replaced


def _written(node: fx.Node) -> fx.Node | None:
    """The argument that is the call's only result; None for any other call."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return None
    schema = node.target._schema
    if node.target.namespace != "aten" or len(schema.returns) != 1:
        return None
    returned = schema.returns[0].alias_info
    if returned is None or not returned.is_write:
        return None
    for i, argument in enumerate(schema.arguments):
        info = argument.alias_info
        if info is not None and info.is_write and info.before_set == returned.before_set:
            given = node.kwargs.get(argument.name) if i >= len(node.args) else node.args[i]
            return given if isinstance(given, fx.Node) else None
    return None
