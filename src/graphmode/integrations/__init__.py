"""What other projects' ops read from outside their arguments, and how it is resolved. One table, by op namespace."""

from __future__ import annotations

from importlib import import_module

import torch
import torch.fx as fx

from graphmode.inspect.counters import ledger
from graphmode.runtime.outside import Resolver

_RESOLVERS = {"vllm": "graphmode.integrations.vllm.attention"}


def resolver_of(gm: fx.GraphModule) -> Resolver | None:
    """Who resolves what a program's ops read from outside; None where nobody has to."""
    for node in gm.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace in _RESOLVERS:
            try:
                found: Resolver | None = import_module(_RESOLVERS[node.target.namespace]).resolver_of(gm)
            except ImportError as error:  # another version than the one it is written for
                ledger.gone.note(f"{node.target.namespace}'s ops are called as they are: {error}")
                return None
            return found
    return None
