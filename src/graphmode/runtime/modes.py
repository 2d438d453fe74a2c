"""What a program does to the thread's modes: gradients switched on inside, or a mode left set at its end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.fx as fx


@dataclass(frozen=True)
class Modes:
    """Of one program, as Dynamo traced it."""

    enables_grad: bool = False  # results may need gradients even where the caller's mode is off
    leaves_grad: bool | None = None  # the grad mode set at the end; None: as it was
    inference: bool = False  # enters or leaves inference mode
    autocast: frozenset[str] = frozenset()  # types of the devices it is entered for

    @contextlib.contextmanager
    def undone_by_an_error(self) -> Iterator[None]:
        """Has an error leave the thread's modes as they were, as the user's `with` would."""
        if self.leaves_grad is None and not self.autocast:
            yield
            return
        grad, cached, depth = torch.is_grad_enabled(), torch.is_autocast_cache_enabled(), _autocast_depth()
        states = [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in self.autocast]
        try:
            yield
        except BaseException:
            torch._C._set_grad_enabled(grad)
            for _ in range(_autocast_depth() - depth):
                if torch.autocast_decrement_nesting() == 0:
                    torch.clear_autocast_cache()
            torch.set_autocast_cache_enabled(cached)
            for device, enabled, dtype in states:
                torch.set_autocast_enabled(device, enabled)
                torch.set_autocast_dtype(device, dtype)
            raise


def _autocast_depth() -> int:
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


def modes_of(gm: fx.GraphModule) -> Modes:
    """Reads the mode switches among the nodes of Dynamo's graph."""
    enables, leaves, inference, autocast = False, None, False, set()
    for node in gm.graph.nodes:
        if node.target is torch._C._set_grad_enabled:
            leaves = bool(node.args[0])
            enables = enables or leaves
        elif node.target is torch.autograd.grad_mode._enter_inference_mode:
            inference = True
        elif node.target is torch.amp.autocast_mode._enter_autocast:
            autocast.add(str(node.args[0]))
    return Modes(enables, leaves, inference, frozenset(autocast))
