"""What the traced code read outside its arguments, as a flat list that a native check can compare at each call.

Starts from the sources of Dynamo's guards. A dict is compared by its version tag, a list by its items, a global by
its value.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch._dynamo import source as sources
from torch._dynamo.guards import _get_closure_vars
from torch._guards import ChainedSource, Source

# Sources that stand for modes and shapes: the native check compares those itself.
_MODES = (
    sources.GlobalStateSource,
    sources.TorchFunctionModeStackSource,
    sources.ShapeEnvSource,
    sources.CurrentStreamSource,
    sources.ConstantSource,
    sources.ImportSource,
)


class NotWatchable(Exception):
    """The traced code read something that a flat check can't compare; the message names it."""


@dataclass
class Watch:
    """Objects to compare, and the sources nothing compares."""

    entries: list[tuple[Any, ...]] = field(default_factory=list)  # (dict,) | (list,) | (dict, key)
    unchecked: set[str] = field(default_factory=set)  # attributes of classes and functions
    _seen: set[tuple[int, Any]] = field(default_factory=set)

    def whole(self, container: Any) -> None:
        """Compares a dict by version, or a list item by item."""
        if (id(container), None) not in self._seen:
            self._seen.add((id(container), None))
            self.entries.append((container,))

    def item(self, container: dict[Any, Any], key: Any) -> None:
        """Compares one entry of a dict that changes otherwise, such as a module's globals."""
        if (id(container), key) not in self._seen:
            self._seen.add((id(container), key))
            self.entries.append((container, key))


def watch(
    read: Iterable[Source], scope: dict[str, Any], global_scope: dict[str, Any], matched: frozenset[int]
) -> Watch:
    """Finds what to compare so that each source would still give the value it gave.

    Args:
        read: sources of guards and of the graph's inputs.
        scope: the traced frame's local names.
        global_scope: the traced frame's globals.
        matched: ids of the containers among the arguments, which are compared as arguments.

    Raises:
        NotWatchable: a source can't be evaluated here.
    """
    result = Watch()
    values: dict[Source, Any] = {}
    names = {"L": scope, "G": global_scope}
    for source in read:
        try:
            source.get_value(names, dict(_get_closure_vars()), values)
        except Exception as error:  # whatever evaluating the user's own attributes raises
            raise NotWatchable(f"{_name(source)} can't be read outside Dynamo ({type(error).__name__})") from error
        value = values[source]
        if isinstance(value, (set, frozenset, deque)):
            raise NotWatchable(f"{_name(source)} is a {type(value).__name__}, which a flat check can't compare")
        if isinstance(value, (dict, list)) and id(value) not in matched:
            result.whole(value)
    for source in list(values):
        _watch_one(source, values, global_scope, matched, result)
    return result


def _watch_one(
    source: Source,
    values: dict[Source, Any],
    global_scope: dict[str, Any],
    matched: frozenset[int],
    result: Watch,
) -> None:
    if isinstance(source, sources.GlobalSource):
        result.item(global_scope, source.global_name)
        return
    if not isinstance(source, ChainedSource) or source.base not in values:
        return
    base = values[source.base]
    if isinstance(base, ModuleType):
        if isinstance(source, sources.AttrSource):
            result.item(base.__dict__, source.member)
        return
    if isinstance(base, (torch.Tensor, tuple, str, bytes)) or base is values[source] or id(base) in matched:
        return  # fixed, or compared as an argument
    if isinstance(base, (dict, list)):
        result.whole(base)
    elif isinstance(getattr(base, "__dict__", None), dict):
        result.whole(base.__dict__)
        if isinstance(base, torch.nn.Module):  # whose attributes live in these as well
            for owned in (base._parameters, base._buffers, base._modules):
                result.whole(owned)
    else:  # an attribute of a class or a function
        result.unchecked.add(_name(source))


def _name(source: Source) -> str:
    try:
        return str(source.name)
    except Exception:  # some sources have no printable form
        return type(source).__name__


def is_mode(source: Source) -> bool:
    """Whether a source stands for a mode that the native check compares itself."""
    return isinstance(source, _MODES)
