"""Pass: removes calls whose results nobody uses and that change nothing."""

from __future__ import annotations

import torch.fx as fx

from graphmode.program.effects import has_effect


def remove_dead_code(gm: fx.GraphModule) -> int:
    """Removes dead calls in place; returns how many."""
    removed = 0
    for node in reversed(list(gm.graph.nodes)):
        if node.op == "call_function" and not node.users and not has_effect(node):
            gm.graph.erase_node(node)
            removed += 1
        elif node.op == "get_attr" and not node.users:
            gm.graph.erase_node(node)
    return removed
