"""What the traced code read outside its arguments, as a flat list that a native check can compare at each call.

Starts from the sources of Dynamo's guards. A dict is compared by its version tag, a list by its items, a global by
its value.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._dynamo import source as sources
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


@dataclass
class Watch:
    """Objects to compare, and the sources nothing compares."""

    entries: list[tuple[Any, ...]] = field(default_factory=list)  # (dict,) | (list,) | (dict, key)
    unchecked: set[str] = field(default_factory=set)
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


def watch(read: Iterable[Source], scope: dict[str, Any], global_scope: dict[str, Any]) -> Watch:
    """Finds what to compare so that each source would still give the value it gave.

    Args:
        read: sources of guards and of the graph's inputs.
        scope: the traced frame's local names.
        global_scope: the traced frame's globals.
    """
    result = Watch()
    values: dict[Source, Any] = {}
    for source in read:
        try:
            source.get_value(global_scope, scope, values)
        except Exception:  # a source that only Dynamo's own guards can evaluate
            result.unchecked.add(_name(source))
    for source in list(values):
        _watch_one(source, values, global_scope, result)
    return result


def _watch_one(source: Source, values: dict[Source, Any], global_scope: dict[str, Any], result: Watch) -> None:
    if isinstance(source, sources.GlobalSource):
        result.item(global_scope, source.global_name)
        return
    if not isinstance(source, ChainedSource) or source.base not in values:
        return
    base = values[source.base]
    if isinstance(base, (torch.Tensor, tuple, str, bytes, type, type(torch))) or base is values[source]:
        return  # fixed, or compared as an argument
    if isinstance(base, (dict, list)):
        result.whole(base)
    elif isinstance(getattr(base, "__dict__", None), dict):
        result.whole(base.__dict__)
    elif not callable(base):
        result.unchecked.add(_name(source))


def _name(source: Source) -> str:
    try:
        return str(source.name)
    except Exception:  # some sources have no printable form
        return type(source).__name__


def is_mode(source: Source) -> bool:
    """Whether a source stands for a mode that the native check compares itself."""
    return isinstance(source, _MODES)
