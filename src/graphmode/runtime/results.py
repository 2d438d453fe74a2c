"""How the user's result is made of the graph's: a template that native code fills."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

Template = tuple[Any, ...]
_CONSTANTS = (int, float, bool, str, bytes, type(None), torch.dtype, torch.device, torch.Size)


class NoTemplate(Exception):
    """The result can't be made of the graph's results alone; the message says why."""


def _leaf(value: Any, items: Sequence[Any], leaves: Sequence[Any]) -> Template:
    for i, item in enumerate(items):
        if item is value and isinstance(value, torch.Tensor):
            return ("item", i)
    for i, leaf in enumerate(leaves):
        if leaf is value:
            return ("leaf", i)
    if type(value) in _CONSTANTS:
        return ("constant", value)
    raise NoTemplate(f"the result has a {type(value).__name__} that is no result of the graph")


def template(
    value: Any, items: Sequence[Any], leaves: Sequence[Any], taken: Sequence[Any]
) -> tuple[Template | None, Callable[[tuple[Any, ...]], Any] | None]:
    """A template for native code, or else a function from the graph's results to the user's.

    Args:
        value: what the user got.
        items: the graph's results.
        leaves: tensors among the user's arguments.
        taken: containers among the user's arguments: a result that is one of them has an identity to keep.

    Raises:
        NoTemplate: neither is possible.
    """
    try:
        return _native(value, items, leaves, taken), None
    except NoTemplate as first:

        def is_taken(part: Any) -> bool:
            return part != () and any(part is t for t in taken)

        flat, spec = pytree.tree_flatten(value, is_leaf=is_taken)
        if spec.is_leaf():
            raise
        if any(is_taken(part) for part in flat):
            raise NoTemplate("the result holds one of the arguments") from first
        picks = [_leaf(x, items, ()) for x in flat]

        def rebuild(got: tuple[Any, ...]) -> Any:
            return pytree.tree_unflatten([got[p[1]] if p[0] == "item" else p[1] for p in picks], spec)

        return None, rebuild


def _native(value: Any, items: Sequence[Any], leaves: Sequence[Any], taken: Sequence[Any]) -> Template:
    if type(value) in (tuple, list, dict):
        if any(value is t for t in taken) and value != ():
            raise NoTemplate("the result is one of the arguments")
        if type(value) is dict:
            return ("dict", tuple(value), [_native(v, items, leaves, taken) for v in value.values()])
        kind = "tuple" if type(value) is tuple else "list"
        return (kind, [_native(v, items, leaves, taken) for v in value])
    return _leaf(value, items, leaves)
