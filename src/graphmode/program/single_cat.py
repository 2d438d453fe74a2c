"""Pass: a cat of one tensor is a copy of it."""

from __future__ import annotations

import torch
import torch.fx as fx
from torch._prims_common import make_contiguous_strides_for

aten = torch.ops.aten


def is_dense(value: torch.Tensor) -> bool:
    # Strides of dimensions of size 1 too, which is_contiguous() does not look at; as text, so that no guard is added.
    return str(value.stride()) == str(tuple(make_contiguous_strides_for(value.shape)))


def replace_single_cats(gm: fx.GraphModule) -> int:
    """Replaces `cat([x])` by `clone(x, contiguous)`, which can be planned as a plain copy; returns how many."""
    replaced = 0
    for node in gm.graph.find_nodes(op="call_function", target=aten.cat.default):
        tensors = node.args[0]
        value = node.meta.get("val")
        if len(tensors) != 1 or not isinstance(value, torch.Tensor) or not is_dense(value):
            continue
        with gm.graph.inserting_before(node):
            copy = gm.graph.call_function(aten.clone.default, (tensors[0],), {"memory_format": torch.contiguous_format})
        copy.meta = dict(node.meta)
        node.replace_all_uses_with(copy)
        gm.graph.erase_node(node)
        replaced += 1
    return replaced
