"""Pass: removes calls that give back their argument: slices of everything, aliases, conversions to the same dtype.

Only where the result's aliasing stays what it was: a view for a view, never an argument for a copy.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.fx as fx

aten = torch.ops.aten


def _same_tensor(a: Any, b: Any) -> bool:
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return False
    if a.layout != torch.strided or b.layout != torch.strided:
        return False

    # Symbolic sizes are compared as expressions: no guard may be added here.
    def text(t: torch.Tensor) -> tuple[str, ...]:
        return (*map(str, t.shape), "|", *map(str, t.stride()), "|", str(t.storage_offset()))

    return a.dtype == b.dtype and a.device == b.device and text(a) == text(b)


_VIEWS = {
    aten.alias.default,
    aten.detach.default,
    aten.slice.Tensor,
    aten.view.default,
    aten._unsafe_view.default,
    aten.expand.default,
    aten.permute.default,
    aten.transpose.int,
    aten._reshape_alias.default,
}


_CONVERSIONS = {aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.to.other, aten.type_as.default}


def _copies(node: fx.Node) -> bool:
    """Whether a conversion gives other memory though dtype and device are the same."""
    schema = node.target._schema  # type: ignore[union-attr]
    given = {a.name: v for a, v in zip(schema.arguments, node.args, strict=False)} | node.kwargs
    return bool(given.get("copy")) or given.get("memory_format") not in (None, torch.preserve_format)


def _changes_size(target: Any) -> bool:
    """Whether a call may change a tensor's own sizes: under any of its names it is another view afterwards."""
    return isinstance(target, torch._ops.OpOverload) and torch.Tag.inplace_view in target.tags and target not in _KEEPS


_KEEPS = {aten.detach_.default}  # tagged, and no size changes


def remove_no_ops(gm: fx.GraphModule) -> int:
    """Replaces views that are the whole of their argument by the argument; returns how many.

    A view that is a result of the graph stays a tensor object of its own.
    """
    if any(_changes_size(n.target) for n in gm.graph.nodes):
        return 0
    removed = 0
    (output,) = gm.graph.find_nodes(op="output")
    for node in list(gm.graph.nodes):
        if node.op != "call_function":
            continue
        is_view = node.target in _VIEWS and output not in node.users
        if not is_view and (node.target not in _CONVERSIONS or _copies(node)):
            continue
        source = node.args[0]
        if not isinstance(source, fx.Node) or not _same_tensor(node.meta.get("val"), source.meta.get("val")):
            continue
        node.replace_all_uses_with(source)
        gm.graph.erase_node(node)
        removed += 1
    return removed
