"""How the user's result is made of the graph's: a template that native code fills."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from types import FrameType
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
    held = [t for t in taken if not (type(t) is tuple and len(t) == 0)]  # of empty ones there is only one
    _check_attributes(items, leaves)
    made: tuple[Template | None, Callable[[tuple[Any, ...]], Any] | None]
    try:
        made = _native(value, items, leaves, held, ()), None
    except _NotNative as why:
        made = None, _in_python(value, items, held, why)
    _check_owners(value, (), [])
    return made


def _in_python(
    value: Any, items: Sequence[Any], taken: Sequence[Any], why: NoTemplate
) -> Callable[[tuple[Any, ...]], Any]:
    flat, spec = pytree.tree_flatten(value, is_leaf=lambda part: _is_among(part, taken))
    if spec.is_leaf():
        raise why
    if any(_is_among(part, taken) for part in flat):
        raise NoTemplate("the result holds one of the arguments")
    picks = [_leaf(x, items, ()) for x in flat]

    def rebuild(got: tuple[Any, ...]) -> Any:
        return pytree.tree_unflatten([got[p[1]] if p[0] == "item" else p[1] for p in picks], spec)

    return rebuild


class _NotNative(NoTemplate):
    """Native code can't build the result; Python may."""


def _is_among(value: Any, others: Sequence[Any]) -> bool:
    return any(value is other for other in others)


def _check_owners(value: Any, holders: Sequence[Any], seen: list[int]) -> None:
    """Raises for a list or object that something else holds too: the model's own, or one that is there twice."""
    if isinstance(value, torch.Tensor) or type(value) in _CONSTANTS:
        return
    if not isinstance(value, tuple):
        owners = [r for r in gc.get_referrers(value) if not (_is_among(r, holders) or isinstance(r, FrameType))]
        if owners or id(value) in seen:
            raise NoTemplate(f"the result has a {type(value).__name__} that something else holds too")
    seen.append(id(value))
    parts = _parts(value)
    for part in parts:
        _check_owners(part, (value, parts), seen)


def _parts(value: Any) -> list[Any]:
    """What a container has in it, one level down; nothing for anything else."""
    parts, spec = pytree.tree_flatten(value, is_leaf=lambda x: x is not value)
    return [] if spec.is_leaf() else parts


def _check_attributes(items: Sequence[Any], leaves: Sequence[Any]) -> None:
    """What a model sets on a result is Python's to see, and no replay would set it."""
    for item in items:
        if type(item) is torch.Tensor and vars(item) and not any(item is leaf for leaf in leaves):
            raise NoTemplate(f"the model sets attributes of a result: {', '.join(vars(item))}")


def _native(
    value: Any, items: Sequence[Any], leaves: Sequence[Any], taken: Sequence[Any], around: tuple[Any, ...]
) -> Template:
    if type(value) in (tuple, list, dict):
        if _is_among(value, around):
            raise NoTemplate("the result holds itself")
        if _is_among(value, taken):
            raise _NotNative("the result is one of the arguments")
        around = (*around, value)
        if type(value) is dict:
            return ("dict", tuple(value), [_native(v, items, leaves, taken, around) for v in value.values()])
        kind = "tuple" if type(value) is tuple else "list"
        return (kind, [_native(v, items, leaves, taken, around) for v in value])
    try:
        return _leaf(value, items, leaves)
    except NoTemplate as error:
        raise _NotNative(str(error)) from None
