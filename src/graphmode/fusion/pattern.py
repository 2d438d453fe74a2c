"""What a group of calls looks like: patterns over the nodes of a program, matched from the last call to the first.

A pattern matches a call only if every argument that it does not name has the schema's default: what was not thought of
is no match.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

import torch
import torch.fx as fx

aten = torch.ops.aten


@dataclass(frozen=True)
class Found:
    """A match so far: values by the pattern's names, and the calls that are part of it."""

    bound: MappingProxyType[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    nodes: tuple[fx.Node, ...] = ()

    def bind(self, name: str, value: Any) -> Found | None:
        """With one more name; None where it stands for another value already."""
        if name in self.bound:
            return self if _is_same(self.bound[name], value) else None
        return Found(MappingProxyType({**self.bound, name: value}), self.nodes)

    def taking(self, node: fx.Node) -> Found:
        """With one more call."""
        return self if node in self.nodes else Found(self.bound, (*self.nodes, node))


class Pattern(Protocol):
    """Yields each way in which a value matches."""

    def match(self, value: Any, found: Found) -> Iterator[Found]: ...


def _is_same(a: Any, b: Any) -> bool:
    return a is b if isinstance(a, fx.Node) or isinstance(b, fx.Node) else type(a) is type(b) and a == b


def value_of(node: Any) -> Any:
    """The fake tensor, or tuple of them, that stands for a node."""
    return node.meta.get("val") if isinstance(node, fx.Node) else None


def tensor_of(node: Any) -> torch.Tensor | None:
    """The fake tensor of a node that has one."""
    value = value_of(node)
    return value if isinstance(value, torch.Tensor) else None


@dataclass(frozen=True)
class Name:
    """Any value, by a name; the same value wherever the name stands again."""

    name: str

    def match(self, value: Any, found: Found) -> Iterator[Found]:
        bound = found.bind(self.name, value)
        if bound is not None:
            yield bound


@dataclass(frozen=True)
class Tensor:
    """A tensor of the program, by a name."""

    name: str

    def match(self, value: Any, found: Found) -> Iterator[Found]:
        if tensor_of(value) is not None:
            yield from Name(self.name).match(value, found)


@dataclass(frozen=True)
class Number:
    """A Python number, by a name."""

    name: str

    def match(self, value: Any, found: Found) -> Iterator[Found]:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield from Name(self.name).match(value, found)


@dataclass(frozen=True)
class Exactly:
    """One constant, or one of several."""

    values: tuple[Any, ...]

    def match(self, value: Any, found: Found) -> Iterator[Found]:
        plain = list(value) if isinstance(value, (list, tuple)) else value
        if not isinstance(value, fx.Node) and any(plain == v for v in self.values):
            yield found


@dataclass(frozen=True)
class As:
    """A pattern whose value gets a name too."""

    name: str
    pattern: Pattern

    def match(self, value: Any, found: Found) -> Iterator[Found]:
        for one in self.pattern.match(value, found):
            bound = one.bind(self.name, value)
            if bound is not None:
                yield bound


@dataclass(frozen=True)
class Either:
    """One pattern or another."""

    patterns: tuple[Pattern, ...]

    def match(self, value: Any, found: Found) -> Iterator[Found]:
        for pattern in self.patterns:
            yield from pattern.match(value, found)


@dataclass(frozen=True)
class Many:
    """A list of values."""

    patterns: tuple[Pattern, ...]

    def match(self, value: Any, found: Found) -> Iterator[Found]:
        if isinstance(value, (list, tuple)) and len(value) == len(self.patterns):
            yield from _all(list(zip(self.patterns, value, strict=True)), found)


@dataclass(frozen=True)
class Call:
    """A call of one of some ops; what stands first may stand second where it `commutes`."""

    targets: tuple[Any, ...]
    arguments: tuple[Pattern, ...]
    commutes: bool = False

    def match(self, value: Any, found: Found) -> Iterator[Found]:
        if not isinstance(value, fx.Node) or value.op != "call_function" or value.target not in self.targets:
            return
        given = arguments_of(value)
        if given is None or len(given) < len(self.arguments) or not _rest_is_default(value, len(self.arguments)):
            return
        found = found.taking(value)
        yield from _all(list(zip(self.arguments, given, strict=False)), found)
        if self.commutes:
            swapped = [given[1], given[0], *given[2:]]
            yield from _all(list(zip(self.arguments, swapped, strict=False)), found)


def _all(pairs: Sequence[tuple[Pattern, Any]], found: Found) -> Iterator[Found]:
    if not pairs:
        yield found
        return
    (pattern, value), *rest = pairs
    for one in pattern.match(value, found):
        yield from _all(rest, one)


def arguments_of(node: fx.Node) -> list[Any] | None:
    """All arguments of a call in the order of its schema, with defaults; None for what has no schema."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    found = []
    for i, argument in enumerate(node.target._schema.arguments):
        if i < len(node.args):
            found.append(node.args[i])
        else:
            found.append(node.kwargs.get(argument.name, argument.default_value))
    return found


def _rest_is_default(node: fx.Node, taken: int) -> bool:
    arguments = node.target._schema.arguments  # type: ignore[union-attr]
    given = arguments_of(node) or []
    return all(_is_same(given[i], a.default_value) for i, a in enumerate(arguments) if i >= taken)


_CASTS = (aten.to.dtype, aten._to_copy.default, aten.type_as.default, aten.to.dtype_layout)


_ROUNDING = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


def is_cast(node: Any) -> bool:
    """Whether a call changes the dtype, by a rounding at most, and nothing else that shows."""
    if not isinstance(node, fx.Node) or node.target not in _CASTS or not isinstance(node.args[0], fx.Node):
        return False
    given, made = tensor_of(node.args[0]), tensor_of(node)
    return (
        given is not None
        and made is not None
        and made.device == given.device
        and {made.dtype, given.dtype} <= _ROUNDING
        and str(made.shape) == str(given.shape)
        and str(made.stride()) == str(given.stride())
    )


@dataclass(frozen=True)
class Cast:
    """A pattern, with or without changes of dtype after it."""

    pattern: Pattern

    def match(self, value: Any, found: Found) -> Iterator[Found]:
        yield from self.pattern.match(value, found)
        if is_cast(value):
            yield from self.match(value.args[0], found.taking(value))


@dataclass(frozen=True)
class Optional:
    """A pattern, with or without one call around its first argument: `around` gets the pattern."""

    around: Callable[[Pattern], Pattern]
    pattern: Pattern

    def match(self, value: Any, found: Found) -> Iterator[Found]:
        yield from self.pattern.match(value, found)
        yield from self.around(self.pattern).match(value, found)


@dataclass(frozen=True)
class Half:
    """The first or second half of the last dimension, by a slice, chunk or split."""

    pattern: Pattern
    which: int

    def match(self, value: Any, found: Found) -> Iterator[Found]:
        if not isinstance(value, fx.Node) or value.op != "call_function":
            return
        found = found.taking(value)
        if value.target is operator.getitem and value.args[1] == self.which and isinstance(value.args[0], fx.Node):
            parts = value.args[0]
            if parts.target in _SPLITS and len(value_of(parts)) == 2 and self._is_half(value, parts.args[0], parts):
                yield from self.pattern.match(parts.args[0], found.taking(parts))
        elif value.target is aten.slice.Tensor:
            whole, dim, start, end, step = (arguments_of(value) or [])[:5]
            tensor = tensor_of(whole)
            if tensor is None or tensor.dim() == 0 or step != 1 or dim not in (-1, tensor.dim() - 1):
                return
            size = tensor.shape[-1]
            if not isinstance(size, int) or size % 2:
                return
            begins, ends = (0, size // 2) if self.which == 0 else (size // 2, size)
            if _bound(start, size, 0) == begins and _bound(end, size, size) == ends:
                yield from self.pattern.match(whole, found)

    def _is_half(self, part: fx.Node, whole: Any, parts: fx.Node) -> bool:
        tensor, piece = tensor_of(whole), tensor_of(part)
        if tensor is None or piece is None:
            return False
        dim = (arguments_of(parts) or [])[2]
        last = dim in (-1, tensor.dim() - 1)
        return last and isinstance(tensor.shape[-1], int) and piece.shape[-1] * 2 == tensor.shape[-1]


_SPLITS = (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.split.sizes)


def _bound(given: Any, size: int, default: int) -> Any:
    if given is None:
        return default
    if not isinstance(given, int):
        return None  # a symbol, or another tensor's value
    return max(0, min(size, given + size if given < 0 else given))
