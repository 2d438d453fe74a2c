"""Attention's lengths in a captured step: told to each replay before it is launched, from vLLM's metadata.

vllm-ascend launches first and updates beside the device's work, so each captured call waits for an event, and each step
for the one before. Here the captured calls are those of its eager attention, updated on the step's own stream: see
docs/design/updates.md. Where a length in the metadata has, that is found out while the step is captured, by identity;
what is not certain is `NotTold`, and then vllm-ascend's own way is taken.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from graphmode.devices.adapter import DeviceGraph
from graphmode.errors import CaptureError
from graphmode.inspect.counters import Counters
from graphmode.program.effects import op_name
from graphmode.program.updates import Lists, Updatable
from graphmode.runtime.updating import Updating

Metadata = Mapping[str, Any]  # vLLM's: of each attention layer; layers of one group share theirs
_HOST_OPS = ("npu", "atb", "_C_ascend")  # namespaces whose ops read tensors on the host when they are called
_SUMS = ("TND", "NTD")  # layouts without a dimension of requests: their lengths are running sums, one a request


class NotTold(Exception):
    """This step's lengths can't be told to its replays. The message says which."""

    def __init__(self, why: str, *, this_size: bool = False) -> None:
        """`this_size`: another size of the same model may be told all the same."""
        super().__init__(why)
        self.this_size = this_size


class _Moved(Exception):
    """The metadata of a call is not of the kind that the graph was captured with."""


@dataclass(frozen=True)
class _Source:
    """Where a list or a tensor of the metadata is found; in all of these places it is the same."""

    places: tuple[tuple[str, tuple[str, ...]], ...]  # a layer, and attributes one after another
    captured: list[int] | None  # None: a tensor

    def of(self, metadata: Metadata) -> Any:
        """What a step has there."""
        found = [functools.reduce(getattr, path, metadata[layer]) for layer, path in self.places]
        first = found[0]
        if self.captured is None:
            if not isinstance(first, torch.Tensor) or any(_address(first) != _address(other) for other in found):
                raise _Moved
            return first
        if not isinstance(first, list) or any(first != other for other in found):
            raise _Moved
        return first


def _address(tensor: Any) -> Hashable:
    if not isinstance(tensor, torch.Tensor):
        return None
    return f"{tensor.data_ptr():#x}", *tensor.shape, *tensor.stride(), tensor.dtype


@dataclass(frozen=True)
class _Call:
    """A captured call: its arguments of the metadata, by the number of their source."""

    told: Mapping[str, int]
    padded: str | None  # the argument that has an entry for each request of the captured size, there or not


class Lengths(TorchFunctionMode):
    """The capture of a step: attention's calls become groups of tasks that can be updated.

    A mode, since lists lose their identity in the dispatcher; it looks inside attention alone, whose Python calls them.
    """

    def __init__(self, graph: DeviceGraph, metadata: Any, updatable: Updatable) -> None:
        """`updatable`: the ops, with those of their arguments that are lengths, the keys' last."""
        super().__init__()
        self.why_not: NotTold | None = None
        self._graph = graph
        self._updatable = updatable
        self._sources: dict[int, _Source] = {}  # by the identity of what is there
        self._there: list[Any] = []  # and that, so that nothing else has its identity
        self._used: dict[int, int] = {}  # of those, the ones that the calls have, with their numbers
        self._calls: list[_Call] = []
        if not isinstance(metadata, Mapping) or not metadata:
            self.why_not = NotTold("vLLM has no metadata by layer for this step")
        else:
            self._sources, self._there = _sources(metadata)

    @contextlib.contextmanager
    def of(self, layers: Iterable[Any]) -> Iterator[None]:
        """While the step runs: what vLLM's layers call as attention is looked at."""
        modules = (m for layer in layers if isinstance(layer, torch.nn.Module) for m in layer.modules())
        found: list[Any] = [getattr(module, "impl", None) for module in modules]
        attentions = {id(one): one for one in found if hasattr(one, "forward")}
        before = [(vars(one), vars(one).get("forward")) for one in attentions.values()]
        try:
            for one in attentions.values():
                one.forward = self._looked_at(one.forward)  # this object's, until the capture ends
            yield
        finally:
            for attributes, forward in before:
                attributes.pop("forward", None)
                if forward is not None:
                    attributes["forward"] = forward

    def _looked_at(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def inside(*args: Any, **kwargs: Any) -> Any:
            before = len(self._calls)
            with self:
                out = forward(*args, **kwargs)
            if len(self._calls) == before:  # it may have lengths all the same, in a call that nobody saw
                self.why_not = self.why_not or NotTold(
                    f"{forward.__qualname__} makes no call whose lengths can be updated"
                )
            return out

        return inside

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        op = getattr(func, "default", None) if isinstance(func, torch._ops.OpOverloadPacket) else func
        if not isinstance(op, torch._ops.OpOverload):
            op = None
        lengths = self._updatable.get(op_name(op)) if op is not None else None
        if self.why_not is not None or op is None or lengths is None:
            self.why_not = self.why_not or self._why_not_as_it_is(op or func, (*args, *kwargs.values()))
            return func(*args, **kwargs)
        told = {name: id(value) for name, value in kwargs.items() if id(value) in self._sources}
        for name in lengths:
            if kwargs.get(name) is not None and name not in told:
                self.why_not = NotTold(f"{name} of {op_name(op)} is not in the metadata")
                return func(*args, **kwargs)
        numbers = {name: self._used.setdefault(found, len(self._used)) for name, found in told.items()}
        sums = str(kwargs.get("input_layout", "")).startswith(_SUMS)
        self._calls.append(_Call(numbers, None if sums else lengths[-1]))
        return self._graph.capture_updatable(op, args, kwargs)

    def _why_not_as_it_is(self, called: Any, values: Sequence[Any]) -> NotTold | None:
        """What attention calls beside that may have lengths too, which stay what they were at the capture."""
        op = called if isinstance(called, torch._ops.OpOverload) else None
        name = op_name(op) if op is not None else getattr(called, "__name__", str(called))
        if op is not None and op.namespace in _HOST_OPS and any(_on_the_host(value) for value in values):
            return NotTold(f"{name} reads a tensor on the host", this_size=True)
        if any(isinstance(value, list) and id(value) in self._sources for value in values):
            return NotTold(f"{name} takes a list of the metadata, and can't be updated")
        return None

    def told(self, metadata: Metadata, counters: Counters) -> Told:
        """After the capture: who launches its replays.

        Raises:
            NotTold: they can't be told.
        """
        if self.why_not is None and not self._calls:
            self.why_not = NotTold("the step has no attention")
        if self.why_not is not None:
            raise self.why_not
        made = Told(self._graph, [self._sources[found] for found in self._used], self._calls, counters)
        try:
            made.prove(metadata)
        except CaptureError as error:
            raise NotTold(error.reason) from error
        return made


class Told:
    """The replays of one graph."""

    def __init__(
        self, graph: DeviceGraph, sources: Sequence[_Source], calls: Sequence[_Call], counters: Counters
    ) -> None:
        self._sources = sources
        self._calls = calls
        self._values: list[Any] = []  # of the last step: held, so that no other tensor has the address of one of them
        self._updating = Updating(graph, self._lists, counters)

    def why_not(self, metadata: Any) -> str | None:
        """Before a launch: takes what this step has, or says why the graph can't serve it."""
        try:
            self._values = [source.of(metadata) for source in self._sources]
        except (_Moved, KeyError, AttributeError, TypeError):
            return "vLLM's metadata of attention is of another kind than the graph was captured with"
        return None

    def prove(self, metadata: Metadata) -> None:
        """Updates the calls to what they were captured with.

        Raises:
            CaptureError: this device, or its driver, can't.
        """
        if self.why_not(metadata) is not None:
            raise CaptureError("the metadata of attention changed while a step was captured")
        self._updating.prove(self._key())

    def launch(self) -> None:
        """Updates the calls, where they have something else, and replays."""
        self._updating(*self._key())

    def _key(self) -> tuple[Hashable, ...]:
        return tuple(tuple(v) if isinstance(v, list) else _address(v) for v in self._values)

    def _lists(self, *_: Hashable) -> Sequence[Lists]:
        return [
            {name: self._padded(i) if name == call.padded else self._values[i] for name, i in call.told.items()}
            for call in self._calls
        ]

    def _padded(self, number: int) -> Any:
        captured, now = self._sources[number].captured, self._values[number]
        return now if captured is None else now + [0] * (len(captured) - len(now))  # requests that are not there


def _sources(metadata: Metadata) -> tuple[dict[int, _Source], list[Any]]:
    places: dict[int, list[tuple[str, tuple[str, ...]]]] = {}
    values: dict[int, Any] = {}
    seen: set[int] = set()
    for layer, one in metadata.items():
        if id(one) in seen:
            continue
        seen.add(id(one))
        for path, value in _attributes(one, ()):
            places.setdefault(id(value), []).append((layer, path))
            values[id(value)] = value
    lists = {i: list(value) for i, value in values.items() if isinstance(value, list)}
    return {i: _Source(tuple(at), lists.get(i)) for i, at in places.items()}, list(values.values())


def _attributes(one: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in getattr(one, "__dict__", {}).items():
        if isinstance(value, (list, torch.Tensor)):
            yield (*path, name), value
        elif not path:  # vllm-ascend's metadata has parts for decoding and for prompts
            yield from _attributes(value, (name,))


def _on_the_host(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == "cpu"
