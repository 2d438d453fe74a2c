"""Programs whose ops read what they work on from outside at each call: resolved once a call, then replayed.

Owns the choice between the program as it is and the one with direct calls. What is outside, an integration knows.
"""

from __future__ import annotations

import abc
import threading
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Any

import torch.fx as fx
from torch._dynamo.aot_compile_types import SerializableCallable

from graphmode import _C
from graphmode.runtime.region import Region


class How(Enum):
    """How a call runs for which nothing was resolved."""

    AS_IT_IS = auto()  # the program with its own ops, in graphs like any other
    LIVE = auto()  # a rehearsal, of a size that need not come again: it is not worth a graph


class Resolver(abc.ABC):
    """Knows what the ops of one program would read at a call."""

    @property
    @abc.abstractmethod
    def direct(self) -> fx.GraphModule:
        """The program with direct calls in their place. What they read are further placeholders, at the end."""

    @abc.abstractmethod
    def operands(self, args: Sequence[Any]) -> list[Any] | How:
        """What the direct program takes after `args` at this call, or why it can't serve it. May renew `direct`."""


class Step(SerializableCallable):
    """One of Dynamo's graphs: resolved, and run by the region of the direct program, or as it is."""

    def __init__(self, region: Region, resolver: Resolver, make_region: Callable[[fx.GraphModule], Region]) -> None:
        self._region = region
        self._resolver = resolver
        self._make_region = make_region
        self._program: fx.GraphModule | None = None
        self._direct: Region | None = None
        self._lock = threading.Lock()

    @classmethod
    def serialize_compile_artifacts(cls, fn: Any) -> bytes:
        return _C.Runner.serialize_compile_artifacts(fn)

    @classmethod
    def deserialize_compile_artifacts(cls, data: bytes) -> Any:
        return _C.Runner.deserialize_compile_artifacts(data)

    def __call__(self, *args: Any) -> Any:
        with self._lock:  # the operands are those of the program that is direct now
            operands = self._resolver.operands(args)
            if not isinstance(operands, How) and (self._resolver.direct is not self._program or self._direct is None):
                self._program = self._resolver.direct
                self._direct = self._make_region(self._program)
            direct = self._direct
        if operands is How.LIVE:
            return self._region.rehearse(args)
        if isinstance(operands, How) or direct is None:
            return self._region.run(*args)
        return direct.run(*args, *operands)
