"""What fixes a value that the traced code read: entries that a native check compares at each call.

Starts from Dynamo's sources. Every step of one must be a look-up that runs no code of the user's and that has
something comparable behind it: a dict's version, a list's items, a type's version, one attribute. Else it is loose.
"""

from __future__ import annotations

import collections
import functools
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import torch
from torch._dynamo import source as sources
from torch._dynamo.guards import _get_closure_vars
from torch._guards import ChainedSource, Source
from torch.nn.modules import module as module_state

CONSTANTS = (type(None), bool, int, float, str, bytes, torch.device)  # compared by value as arguments
_ITEMS = (
    sources.GetItemSource,
    sources.DictGetItemSource,
    sources.DictSubclassGetItemSource,
    sources.ConstDictKeySource,
)
_ATTRIBUTES = (sources.AttrSource, sources.GenericAttrSource)
_TRANSPARENT = (sources.NNModuleSource, sources.OptimizerSource, sources.SkipGuardSource)
_NUMBERS = (
    sources.FloatTensorSource,
    sources.ConvertIntSource,
    sources.DynamicScalarSource,
    sources.NegateSource,
)
# Their attributes are read by C code, and give the same object until somebody sets another.
_PLAIN_GETTERS = (
    types.FunctionType,
    types.MethodType,
    types.CellType,
    property,
    staticmethod,
    classmethod,
    functools.partial,
)
# What a class holds that gives the same whenever it is looked up on the same object.
_INERT = (
    types.FunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
    types.BuiltinFunctionType,
    staticmethod,
    classmethod,
)
_HEAP_TYPE = 1 << 9
_MISSING = object()


class Pin(Enum):
    """Why a value is what it was."""

    LOOSE = auto()  # nothing native says so
    ARGUMENT = auto()  # an argument's structure or constant: compared by value
    LEAF = auto()  # a tensor among the arguments: another object at each call
    FIXED = auto()  # the same object as long as the entries are unchanged


@dataclass(frozen=True)
class Pinned:
    """A source's value now, and what is known of it."""

    kind: Pin
    value: Any = _MISSING


_LOOSE = Pinned(Pin.LOOSE)


def is_heap_type(cls: type) -> bool:
    """Whether the attributes of a class can be set."""
    return bool(cls.__flags__ & _HEAP_TYPE)


def static_attribute(cls: type, name: str) -> Any:
    """What a class or its bases have under a name, no descriptor asked."""
    for base in cls.__mro__:
        if name in base.__dict__:
            return base.__dict__[name]
    return _MISSING


def has_plain_attributes(cls: type) -> bool:
    """Whether look-ups on instances run none of the class's own code, nn.Module's apart."""
    missing = static_attribute(cls, "__getattr__")
    return static_attribute(cls, "__getattribute__") is object.__getattribute__ and (
        missing is _MISSING or missing is torch.nn.Module.__getattr__
    )


def instance_dict(value: Any) -> dict[str, Any] | None:
    """An object's own attributes; None where it has no dict of them."""
    try:
        found = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return None
    return found if isinstance(found, dict) else None


def owned_dicts(value: Any) -> list[dict[str, Any]]:
    """Where an nn.Module has its parameters, buffers and submodules; nothing for other objects."""
    if not isinstance(value, torch.nn.Module):
        return []
    return [
        owned for name in ("_parameters", "_buffers", "_modules") if (owned := value.__dict__.get(name)) is not None
    ]


def is_inert(of_class: Any) -> bool:
    """Whether looking this up through a class runs no code of the user's."""
    return isinstance(of_class, _INERT) or not hasattr(type(of_class), "__get__")


class Watched:
    """Pins sources at one call, and collects what has to be compared for the pins to hold at another."""

    def __init__(self, scope: dict[str, Any], global_scope: dict[str, Any], inputs: Sequence[Source]) -> None:
        """`scope`: the traced frame's names: args, kwargs and model. `inputs`: sources of the graph's inputs."""
        self._scope = {"L": scope, "G": global_scope}
        self._inputs = set(inputs)
        self._values: dict[Source, Any] = {}
        self._pins: dict[Source, Pinned] = {}
        self._entries: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        self._unguarded: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        for name, hooks in vars(module_state).items():
            if name.startswith("_global_") and isinstance(hooks, dict):
                self.add_unguarded("dict", hooks)

    @property
    def entries(self) -> list[tuple[Any, ...]]:
        """All that must be unchanged."""
        return list(self._entries.values())

    @property
    def unguarded(self) -> list[tuple[Any, ...]]:
        """Those of the entries that Dynamo's guards would not miss: classes and hooks."""
        return list(self._unguarded.values())

    def add(self, kind: str, value: Any, *more: Any) -> None:
        """Adds an entry; the kinds are those of the native Watch."""
        self._entries.setdefault((kind, id(value), *(m for m in more[:1])), (kind, value, *more))

    def add_unguarded(self, kind: str, value: Any) -> None:
        """Adds an entry that Dynamo does not guard."""
        self.add(kind, value)
        self._unguarded.setdefault((kind, id(value)), (kind, value))

    def add_order(self, names: dict[Any, Any]) -> bool:
        """The order of a dict whose version is an entry already; False where nothing gives it."""
        if type(names) is collections.OrderedDict and len(names) > 1:
            self.add_unguarded("keys", names)  # move_to_end changes no version, and Dynamo looks at another order
            return True
        return type(names) is dict or len(names) < 2

    def add_type(self, cls: type) -> None:
        """A class, by which its instances may change what they are."""
        if is_heap_type(cls):
            self.add_unguarded("type", cls)

    def pin(self, source: Source) -> Pinned:
        """What fixes a source's value, with the entries for it added."""
        known = self._pins.get(source)
        if known is None:
            known = self._pins[source] = self._pin(source)
            if known.kind is Pin.FIXED:
                self.add_type(known.value if isinstance(known.value, type) else type(known.value))
        return known

    def pins_attribute(self, source: Source, name: str, constant: Any) -> bool:
        """Whether an object has a constant as its attribute, and the entries say so: to write it changes nothing."""
        pinned = self.pin(source)
        cls, own = type(pinned.value), instance_dict(pinned.value)
        plain = static_attribute(cls, "__setattr__") is object.__setattr__
        if pinned.kind is not Pin.FIXED or own is None or not plain:
            return False
        self.add("object", pinned.value)
        found = own.get(name, _MISSING)
        data_descriptor = hasattr(type(static_attribute(cls, name)), "__set__")
        return type(found) is type(constant) and found == constant and not data_descriptor

    def _value(self, source: Source) -> Any:
        if source not in self._values:
            try:
                source.get_value(self._scope, dict(_get_closure_vars()), self._values)
            except Exception:  # whatever evaluating the user's own attributes raises
                return _MISSING
        return self._values.get(source, _MISSING)

    def _pin(self, source: Source) -> Pinned:
        value = self._value(source)
        if value is _MISSING:
            return _LOOSE
        if isinstance(source, sources.LocalSource):
            return Pinned(Pin.FIXED if source.local_name == "model" else Pin.ARGUMENT, value)
        if isinstance(source, sources.GlobalSource):
            self.add("entry", self._scope["G"], source.global_name, value)
            return Pinned(Pin.FIXED, value)
        if not isinstance(source, ChainedSource):
            return _LOOSE
        base = self.pin(source.base)
        if isinstance(source, _TRANSPARENT) or base.kind is Pin.LOOSE:
            return base
        if isinstance(source, _NUMBERS):
            number = base.kind in (Pin.ARGUMENT, Pin.FIXED) and isinstance(base.value, (bool, int, float))
            return Pinned(base.kind, value) if number else _LOOSE
        if isinstance(source, sources.TensorPropertySource):
            # The runner compares the sizes of what it gets; FastCall those of other tensors among the arguments.
            compared = base.kind is Pin.LEAF or source.base in self._inputs
            return Pinned(Pin.ARGUMENT, value) if compared else _LOOSE
        if base.kind is Pin.ARGUMENT:
            return self._of_argument(source, value)
        if base.kind is Pin.LEAF or not self._fixes(source, base.value, value):
            return _LOOSE
        return Pinned(Pin.FIXED, value)

    def _of_argument(self, source: Source, value: Any) -> Pinned:
        if not isinstance(source, _ITEMS):
            return _LOOSE
        if isinstance(value, torch.Tensor):
            return Pinned(Pin.LEAF, value)
        by_value = type(value) in (tuple, list, dict, *CONSTANTS)
        return Pinned(Pin.ARGUMENT if by_value else Pin.FIXED, value)

    def _fixes(self, source: ChainedSource, base: Any, value: Any) -> bool:
        """Adds what makes the step from a fixed base to this value repeatable; False where nothing can."""
        if isinstance(source, sources.TypeSource):
            self.add("object", base)
            return True
        if isinstance(source, (sources.TypeDictSource, sources.TypeMROSource)):
            return isinstance(base, type)  # by the class's version
        if isinstance(source, (sources.CodeSource, sources.ClosureSource)):
            return self._attribute(base, "__code__" if isinstance(source, sources.CodeSource) else "__closure__", value)
        if isinstance(source, sources.DefaultsSource):
            return self._default(source, base)
        if isinstance(source, _ATTRIBUTES):
            return self._attribute(base, source.member, value)
        if isinstance(source, _ITEMS):
            return self._item(source, base, value)
        return False

    def _default(self, source: sources.DefaultsSource, base: Any) -> bool:
        held = getattr(base, source.field)
        if isinstance(held, dict):
            self.add("dict", held)
        return self._attribute(base, source.field, held)

    def _item(self, source: ChainedSource, base: Any, value: Any) -> bool:
        if isinstance(source.base, sources.TypeDictSource):
            return True  # a copy of a class's dict: by the class's version
        if isinstance(base, tuple):
            return type(base).__getitem__ is tuple.__getitem__ and not isinstance(source.index, Source)  # type: ignore[attr-defined]
        if isinstance(base, list):
            self.add("items", base)
            return type(base).__getitem__ is list.__getitem__
        if not isinstance(base, dict):
            return False
        by_position = isinstance(source, sources.ConstDictKeySource)
        key = source.index  # type: ignore[attr-defined]
        if by_position or isinstance(key, sources.ConstDictKeySource):
            self.add("dict", base)
            return self.add_order(base)
        plain = isinstance(source, sources.DictSubclassGetItemSource) or type(base).__getitem__ is dict.__getitem__
        if not plain or dict.get(base, key, _MISSING) is not value:
            return False
        if self._is_scope(base):
            self.add("entry", base, key, value)
        else:
            self.add("dict", base)
        return True

    def _is_scope(self, names: dict[Any, Any]) -> bool:
        """A module's globals: other entries change there for reasons that are not the traced code's."""
        return names is self._scope["G"] or dict.__contains__(names, "__name__")

    def _attribute(self, base: Any, name: str, value: Any) -> bool:
        if isinstance(base, types.ModuleType):
            if base.__dict__.get(name, _MISSING) is not value:
                return False
            self.add("entry", base.__dict__, name, value)
            return True
        if isinstance(base, type):
            return self._of_class(base, name)
        if isinstance(base, _PLAIN_GETTERS) and hasattr(static_attribute(type(base), name), "__set__"):
            self.add("attribute", base, name, value)
            return getattr(base, name, _MISSING) is value
        return self._of_object(base, name, value)

    def _of_class(self, base: type, name: str) -> bool:
        meta = type(base)
        self.add_type(meta)
        of_class = static_attribute(base, name)
        plain = meta.__getattribute__ is type.__getattribute__ and static_attribute(meta, name) is _MISSING
        return plain and of_class is not _MISSING and (is_inert(of_class) or isinstance(of_class, property))

    def _of_object(self, base: Any, name: str, value: Any) -> bool:
        cls = type(base)
        if not has_plain_attributes(cls):
            return False
        of_class, own = static_attribute(cls, name), instance_dict(base)
        if hasattr(type(of_class), "__set__") or hasattr(type(of_class), "__delete__"):
            if isinstance(of_class, types.MemberDescriptorType):  # a slot
                self.add("attribute", base, name, value)
                return getattr(base, name, _MISSING) is value
            self.add("object", base)
            return name in ("__dict__", "__class__")
        self.add("object", base)
        if own is not None and name in own:
            return own[name] is value
        if of_class is not _MISSING:
            return is_inert(of_class)
        for owned in owned_dicts(base):
            if owned.get(name, _MISSING) is value:
                self.add("dict", owned)
                return True
        return False


def roots(values: Sequence[Any]) -> Iterator[Any]:
    """Tensors and containers among arguments, in the order in which native code meets them."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif type(value) in (tuple, list):
            yield value
            yield from roots(value)
        elif type(value) is dict:
            yield value
            yield from roots(list(value.values()))
