"""Dynamo's guards, one by one: covered by the native check, or kept to be run again at each call.

A kind of guard that is not known here is kept. Owns no look-up: what fixes a value is `watch`'s.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._dynamo.guards import CheckFunctionManager
from torch._dynamo.output_graph import OutputGraph
from torch._dynamo.types import GuardFilterEntry
from torch._guards import Guard, Source

from graphmode.runtime.watch import Pin, Pinned, Watched, has_plain_attributes, is_heap_type, owned_dicts

# What these look at is in FastCall's own comparison of modes.
_MODES = {
    "AUTOGRAD_SAVED_TENSORS_HOOKS",
    "DEFAULT_DEVICE",
    "DETERMINISTIC_ALGORITHMS",
    "GLOBAL_STATE",
    "GRAD_MODE",
    "TORCH_FUNCTION_STATE",
}
_IDENTITY = {
    "BOOL_MATCH",
    "BUILTIN_MATCH",
    "CLASS_MATCH",
    "FUNCTION_MATCH",
    "ID_MATCH",
    "MODULE_MATCH",
    "NONE_MATCH",
    "NOT_NONE_MATCH",
    "TYPE_MATCH",
}
_KEYS = {"DICT_CONTAINS", "DICT_KEYS_MATCH", "DICT_NOT_CONTAINS"}
_EQUALITY = {"CONSTANT_MATCH", "EQUALS_MATCH"}
_HOOKS = "EMPTY_NN_MODULE_HOOKS_DICT"  # off by default in Dynamo, so that a hook added later is missed
_LENGTH = "SEQUENCE_LENGTH"
_ABSENCE = "NOT_PRESENT_IN_GENERIC_DICT"
_ATOMS = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type,
    range,
    enum.Enum,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
    torch.Size,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.ModuleType,
)
_ON_ARGUMENTS = _IDENTITY | _KEYS | _EQUALITY | {_LENGTH}
_ON_LEAVES = {"NOT_NONE_MATCH", "TENSOR_MATCH", "TYPE_MATCH"}


def never_changes(value: Any) -> bool:
    """Whether equality with a value is settled by the object's identity."""
    if type(value) in (tuple, frozenset):
        return all(never_changes(v) for v in value)
    return isinstance(value, _ATOMS)


@dataclass
class Guards:
    """Dynamo's guards of one trace."""

    all: list[Guard]
    kept: set[int] = field(default_factory=set)  # indices of those that are run again
    check: Callable[[dict[str, Any]], bool] | None = None  # runs them on the frame's names
    alive: list[Any] = field(default_factory=list)  # compared by their address, so that nothing else may take it

    @staticmethod
    def of(
        entries: Sequence[GuardFilterEntry],
        watched: Watched,
        inputs: Sequence[Source],
        output: OutputGraph,
        code: types.CodeType,
        static: bool,
    ) -> Guards:
        """Sorts guards while Dynamo builds them, which is the only time that others can be built.

        Args:
            entries: all guards of the trace.
            watched: the call that is traced.
            inputs: sources of the graph's inputs.
            output: what Dynamo builds guards from.
            code: the traced code.
            static: no size and no number is symbolic.
        """
        result = Guards([e.orig_guard for e in entries])
        kept = [not covers(e.orig_guard, watched, inputs, static) for e in entries]
        result.kept = {i for i, keep in enumerate(kept) if keep}
        if result.kept:
            checked, output.skip_guards_check = output.skip_guards_check, True
            try:
                built = CheckFunctionManager(code, output, guard_filter_fn=lambda _: kept)
            finally:
                output.skip_guards_check = checked
            result.check = built.guard_manager.check
            result.alive = [
                e.value for e, keep in zip(entries, kept, strict=True) if keep and "ID_MATCH" in e.derived_guard_types
            ]
        return result

    def uncovered(self, watched: Watched, inputs: Sequence[Source]) -> Guard | None:
        """A guard that is not run again and that this call's entries do not cover either."""
        for i, guard in enumerate(self.all):
            if i not in self.kept and not covers(guard, watched, inputs, static=True):
                return guard
        return None


def covers(guard: Guard, watched: Watched, inputs: Sequence[Source], static: bool) -> bool:
    """Whether a guard holds as long as FastCall's comparison does; adds what has to be compared."""
    kind = guard.create_fn_name()
    if kind in _MODES:
        return True
    if kind == "SHAPE_ENV":
        return static
    source = guard.originating_source
    pinned = watched.pin(source)
    if kind == "DUPLICATE_INPUT":
        other = watched.pin(guard.create_fn.keywords["source_b"])  # type: ignore[attr-defined]
        return pinned.kind is other.kind and pinned.kind in (Pin.LEAF, Pin.FIXED)
    if pinned.kind is Pin.ARGUMENT:
        return kind in _ON_ARGUMENTS
    if pinned.kind is Pin.LEAF:
        return kind in _ON_LEAVES
    if pinned.kind is Pin.FIXED:
        return source in inputs if kind == "TENSOR_MATCH" else _covers_fixed(kind, pinned, watched)
    return False


def _covers_fixed(kind: str, pinned: Pinned, watched: Watched) -> bool:
    value = pinned.value
    if kind in _IDENTITY:
        if is_heap_type(type(value)):
            watched.add("object", value)  # whose class may be set
        return True
    if kind == "CLOSURE_MATCH":
        if isinstance(value, types.FunctionType):
            watched.add("attribute", value, "__code__", value.__code__)
        return True
    if kind == _HOOKS:
        watched.add_unguarded("dict", value)
        return True
    if kind == _ABSENCE:
        watched.add("object", value)
        return True
    if kind == "HASATTR":
        watched.add("object", value)
        for owned in owned_dicts(value):
            watched.add("dict", owned)
        return has_plain_attributes(type(value))
    return _covers_content(kind, value, watched)


def _covers_content(kind: str, value: Any, watched: Watched) -> bool:
    if kind not in _KEYS | _EQUALITY | {_LENGTH}:
        return False
    if never_changes(value):
        return True
    if isinstance(value, tuple):
        return kind == _LENGTH
    if isinstance(value, list):
        watched.add("items", value)
        return kind == _LENGTH or all(never_changes(v) for v in value)
    if isinstance(value, dict):
        watched.add("dict", value)
        return watched.add_order(value) and kind not in _EQUALITY
    return False
