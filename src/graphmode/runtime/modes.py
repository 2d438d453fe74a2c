"""What a program does to the thread's modes: gradients switched on inside, or a mode left set at its end."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.fx as fx


@dataclass(frozen=True)
class Modes:
    """Of one program, as Dynamo traced it."""

    enables_grad: bool = False  # results may need gradients even where the caller's mode is off
    leaves_grad: bool | None = None  # the grad mode set at the end; None: as it was
    inference: bool = False  # enters or leaves inference mode


def modes_of(gm: fx.GraphModule) -> Modes:
    """Reads the mode switches among the nodes of Dynamo's graph."""
    enables, leaves, inference = False, None, False
    for node in gm.graph.nodes:
        if node.target is torch._C._set_grad_enabled:
            leaves = bool(node.args[0])
            enables = enables or leaves
        elif node.target is torch.autograd.grad_mode._enter_inference_mode:
            inference = True
    return Modes(enables, leaves, inference)
