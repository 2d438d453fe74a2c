"""Makes the calls that take a match's place, each with the fake value of what it gives."""

from __future__ import annotations

import contextlib
import operator
from typing import Any

import torch
import torch.fx as fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

from graphmode.fusion.pattern import value_of
from graphmode.program.lower import pinning_no_size


class Refused(Exception):
    """A replacement is not the same for the program: why."""


class Emit:
    """Makes nodes before one node of a program; `undo` takes them back."""

    def __init__(self, gm: fx.GraphModule, before: fx.Node, like: fx.Node) -> None:
        """`like`: the call whose line the new ones have."""
        self.made: list[fx.Node] = []
        self._gm = gm
        self._before = before
        self._meta = {k: v for k, v in like.meta.items() if k != "val"}

    def __call__(self, op: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """One call of an op overload.

        Raises:
            Refused: its fake kernel takes no such arguments, or would fix a size.
        """
        fakes = pytree.tree_map_only(fx.Node, value_of, (args, kwargs))
        mode = next(t.fake_mode for t in pytree.tree_leaves(fakes) if isinstance(t, FakeTensor))
        try:
            with mode, contextlib.nullcontext() if mode.shape_env is None else pinning_no_size(mode.shape_env):
                value = op(*fakes[0], **fakes[1])
        except Exception as error:  # whatever a fake kernel raises
            said = str(error).strip().splitlines()
            raise Refused(f"{op}: {type(error).__name__}: {said[0][:160] if said else ''}") from error
        return self._node(op, args, kwargs, value)

    def item(self, node: fx.Node, index: int) -> fx.Node:
        """One result of a call that has several."""
        return self._node(operator.getitem, (node, index), {}, value_of(node)[index])

    def _node(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> fx.Node:
        with self._gm.graph.inserting_before(self._before):
            node = self._gm.graph.call_function(target, args, kwargs)
        node.meta = {**self._meta, "val": value}
        self.made.append(node)
        return node

    def undo(self) -> None:
        """Removes all calls that were made."""
        for node in reversed(self.made):
            self._gm.graph.erase_node(node)
        self.made.clear()


def same_for_the_program(made: Any, wanted: Any) -> bool:
    """Whether one tensor may stand for another: size, strides, dtype and device, symbols as text."""
    if not isinstance(made, torch.Tensor) or not isinstance(wanted, torch.Tensor):
        return False

    def text(t: torch.Tensor) -> tuple[str, ...]:
        # a dimension of size 1 may have any stride
        strides = [str(s) for n, s in zip(t.shape, t.stride(), strict=True) if str(n) != "1"]
        return (*map(str, t.shape), "|", *strides, "|", str(t.dtype), str(t.device))

    return text(made) == text(wanted)
